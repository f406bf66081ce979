"""What a base is worth at the tasks of bench/task_sets.py, and an adapter that has learnt one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench.cells import number
from bench.short_run import fresh_adapter, short_run
from bench.task_sets import OTHER, TEST, TRAIN, Row, Task, judge, reworded, unlike_texts
from train.batches import Order
from train.evaluation import evaluate
from train.examples import Encoded
from train.labels import encode
from train.prompt_changes import measure
from train.recipe import Recipe
from train.session import Session

# How many `train_rows` and `test_rows` are used, at most, and how many `unlike_tokens` of text like no task
Sizes = Mapping[str, float]


def untuned(recipe: Recipe, device: str, tasks: Sequence[Task], sizes: Sizes) -> dict[str, Any]:
    """Of the recipe's base: loss (nats a token) and score at each task, and its losses on other text."""
    with fresh_adapter(recipe, torch.device(device)) as session:
        rows = {task.name: task.rows(TEST, int(sizes["test_rows"])) for task in tasks}
        scores = judge(session, [row for each in rows.values() for row in each])
        found = {
            name: {"loss": number(session.loss(_chats(each))), "score": number(scores[name])}
            for name, each in rows.items()
        }
        texts = unlike_texts(tasks[0].folder, session.tokenizer, int(sizes["unlike_tokens"])) if tasks else {}
        unlike = {
            kind: number(evaluate(session.adapted, of, recipe, session.device)) for kind, of in texts.items()
        }
        return {"tasks": found, "unlike": unlike}


def tuned(recipe: Recipe, device: str, task: Task, sizes: Sizes, judged: bool = True) -> dict[str, Any]:
    """Train the recipe's adapter on a task: its curves, and whether it diverged.

    `judged` has the losses on other text at each evaluation, and of an adapter that didn't diverge what
    `_worth` gives. Raises TrainError.
    """
    with fresh_adapter(recipe, torch.device(device)) as session:
        train, tests = (
            _encoded(session, task.rows(split, limit))
            for split, limit in ((TRAIN, int(sizes["train_rows"])), (TEST, int(sizes["test_rows"])))
        )
        others = unlike_texts(task.folder, session.tokenizer, int(sizes["unlike_tokens"])) if judged else {}
        ran = short_run(session.adapted, recipe, Order(train, recipe.sft), tests, others, may_break=True)
        found = ran.figures() | {"learning_rate": recipe.sft.learning_rate}
        return found | (_worth(session, task, int(sizes["test_rows"])) if judged and not ran.diverged else {})


def _worth(session: Session, task: Task, limit: int) -> dict[str, Any]:
    """Loss and score on the test rows as they are; the loss under each change and on another domain, and how
    often an injected line was obeyed."""
    rows = task.rows(TEST, limit)
    others = reworded(rows)
    if task.other:
        others[task.other] = _chats(task.rows(OTHER, limit))
    costs = measure(session, _chats(rows), others)
    return {
        "loss": number(costs.loss),
        "score": number(judge(session, rows)[task.name]),
        "changed": {change: {"loss": number(loss)} for change, loss in costs.changed.items()},
        "obeyed": number(costs.obeyed),
    }


def _chats(rows: Sequence[Row]) -> list[Any]:
    return [row.example() for row in rows]


def _encoded(session: Session, rows: Sequence[Row]) -> list[Encoded]:
    return [part for chat in _chats(rows) for part in encode(session.tokenizer, chat)]
