"""The scores of a task on the test split, as they are taken before and after the training."""

from __future__ import annotations

from collections.abc import Callable

from train.examples import Example
from train.tasks import code_instructions, quotes, sms
from train.tasks.scored import Scored

_TASKS: dict[str, Callable[[Scored, list[Example], list[Example]], dict[str, float]]] = {
    "quotes": quotes.score,
    "code": code_instructions.score,
    "sms": sms.score,
}


def score(task: str, model: Scored, tests: list[Example], train: list[Example]) -> dict[str, float]:
    """Return figures by their names: `test_loss` (nats a token), and those of the task's own file.

    A chat has its held-out loss only. So have plain texts, since their prompts aren't chats. What can't be
    computed (no test rows, one class only) is left out.
    """
    figures = {"test_loss": model.loss(tests)} if tests else {}
    plain = any(not example.messages for example in [*tests, *train])
    if task in _TASKS and not plain:
        figures |= _TASKS[task](model, tests, train)
    return figures
