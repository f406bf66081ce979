"""One cell of the study: an arm's base in memory, an adapter that is trained on it, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.cells import number
from bench.inference import written
from bench.short_run import forget_bases, fresh_adapter, short_run
from studies.quantised_tasks import Row, changed_here, judge, load_task, unlike_texts
from train.batches import Order
from train.evaluation import evaluate
from train.examples import Encoded
from train.labels import encode
from train.model import load_base
from train.prompt_changes import measure
from train.recipe import Recipe, parse
from train.session import Session
from train.sweep_grid import scale

ARMS = ("gptq", "nf4", "int8", "bf16")
QUANTISED: dict[str, dict[str, Any]] = {
    "gptq": {"GPTQConfig": {"bits": 4}},
    "nf4": {"BitsAndBytesConfig": {"load_in_4bit": True}},
    "int8": {"BitsAndBytesConfig": {"load_in_8bit": True}},
    "bf16": {},
}
LONGEST = 512  # tokens of a row
SPIKE, WINDOW = 1.5, 5  # a step's loss above so many times the mean of the steps before it is a spike


@dataclass(frozen=True)
class Sizes:
    """How much of everything: a quick look, or the study."""

    train_rows: int
    test_rows: int
    epochs: int
    batch: int = 8
    rank: int = 8
    alpha: int = 16
    rate: float = 1e-3
    unlike_tokens: int = LONGEST
    new_tokens: int = 64
    repeats: int = 3


@dataclass(frozen=True)
class Job:
    """A cell, as it goes to the process that does it; `what`: untuned, task, alpha, rate or speed."""

    what: str
    arm: str
    base: str  # the arm's own folder
    device: str
    sizes: Sizes
    task: str = "quotes"
    tasks: tuple[str, ...] = ()  # that an untuned base is asked
    seed: int = 0
    alpha: int = 0
    rate: float = 0.0
    batches: tuple[int, ...] = ()  # of chats at once, whose speed is measured


def run_job(job: Job) -> dict[str, Any]:
    """Do a cell; return what results.json keeps of it. Raises TrainError."""
    recipe, device = recipe_of(job), torch.device(job.device)
    if job.what == "speed":
        forget_bases()
        model = load_base(job.base, recipe, device)
        return written(model, job.batches, job.sizes.new_tokens, job.sizes.repeats)
    with fresh_adapter(recipe, device) as session:
        if job.what == "untuned":
            return untuned(session, job)
        found = train(session, job)
        if job.what == "task" and not found["diverged"]:
            found |= robustness(session, job)
        return found


def recipe_of(job: Job) -> Recipe:
    """The recipe of a cell, in the product's own words."""
    sizes = job.sizes
    content = {
        "name": "study",
        "model": {"base_model": job.base, "license": "apache-2.0"},
        "data": {"path": "studies/data", "license": "apache-2.0"},
        "LoraConfig": {"r": sizes.rank, "lora_alpha": job.alpha or sizes.alpha},
        "SFTConfig": {
            "max_length": LONGEST,
            "packing": False,
            "per_device_train_batch_size": sizes.batch,
            "num_train_epochs": sizes.epochs,
            "learning_rate": job.rate or sizes.rate,
            "warmup_ratio": 0.1,
            "logging_steps": 1,
            "seed": job.seed,
        },
        "memory": "fast",
    }
    return parse(content | QUANTISED[job.arm], "the study's recipe")


def compensated(sizes: Sizes, alpha: int, job_of: Callable[..., Job]) -> float:
    """The rate at which an adapter of this alpha moves the weights as far as the usual one does."""
    usual, other = recipe_of(job_of()), recipe_of(job_of(alpha=alpha))
    return sizes.rate * scale(usual.lora) / scale(other.lora)


def train(session: Session, job: Job) -> dict[str, Any]:
    """Train one adapter on the job's task; return its curves and what became of it."""
    sizes, recipe = job.sizes, session.recipe
    rows = _encoded(session, job.task, "train", sizes.train_rows)
    tests = _encoded(session, job.task, "test", sizes.test_rows)
    others = _unlike(session, job) if job.what == "task" else {}
    ran = short_run(session.adapted, recipe, Order(rows, recipe.sft), tests, others, may_break=True)
    return ran.figures() | {"learning_rate": recipe.sft.learning_rate}


def _encoded(session: Session, task: str, split: str, limit: int) -> list[Encoded]:
    rows = [row.example() for row in load_task(task, split, limit)]
    return [part for row in rows for part in encode(session.tokenizer, row)]


def _unlike(session: Session, job: Job) -> dict[str, list[Encoded]]:
    return unlike_texts(session.tokenizer, job.sizes.unlike_tokens)


def untuned(session: Session, job: Job) -> dict[str, Any]:
    """What the base is worth at each task, and its losses on other text."""
    rows = {task: load_task(task, "test", job.sizes.test_rows) for task in job.tasks}
    scores = judge(session, [row for each in rows.values() for row in each])
    found = {
        task: {"loss": loss(session, each), "score": number(scores[task])} for task, each in rows.items()
    }
    unlike = {
        kind: number(evaluate(session.adapted, texts, session.recipe, session.device))
        for kind, texts in _unlike(session, job).items()
    }
    return {"tasks": found, "unlike": unlike}


def robustness(session: Session, job: Job) -> dict[str, Any]:
    """Loss and score on the test rows as they are; the loss under each change and on another domain, and how
    often an injected line was obeyed."""
    task, limit = job.task, job.sizes.test_rows
    rows = load_task(task, "test", limit)
    others = changed_here(rows)
    if task == "sentiment":
        others["other domain"] = [row.example() for row in load_task(task, "other", limit)]
    costs = measure(session, [row.example() for row in rows], others)
    return {
        "loss": number(costs.loss),
        "score": number(judge(session, rows)[task]),
        "changed": {change: {"loss": number(loss)} for change, loss in costs.changed.items()},
        "obeyed": number(costs.obeyed),
    }


def loss(session: Session, rows: list[Row]) -> float | None:
    """Nats a trained token."""
    return number(session.loss([row.example() for row in rows]))
