"""Weights and switches: what says of a row or of a turn that it isn't to be trained.

A weight of 0 and a switch that is off leave out; 1 and on train. Training counts every row alike, so that
another weight can't be honoured: such a row is left out and counted, and never trained as if it weighed 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.errors import LeftOut
from train.cells import cell_text, missing, number

# OpenAI's weight, Axolotl's train, ms-swift's loss, torchtune's masked, scikit-learn's sample_weight.
WEIGHTS = ("weight", "loss_weight", "loss_scale", "sample_weight", "example_weight", "row_weight")
TRAINED = (
    *WEIGHTS,
    *("train", "training", "trained", "trainable", "train_on_turn", "loss", "loss_mask", "do_train"),
    *("is_train", "is_training", "train_on", "use", "use_for_training", "include", "included", "keep"),
)
NOT_TRAINED = ("masked", "mask", "ignore", "ignored", "skip", "skipped", "exclude", "excluded")
# Of people's judgement: false, or of the last three true, is an answer that isn't to be learnt.
JUDGED = ("label", "chosen", "accepted", "approved", "is_correct", "correct", "is_chosen")
JUDGED_BAD = ("rejected", "is_rejected", "deleted")

_WORDS = ("true", "false", "yes", "no")


def wanted(key: str, value: Any) -> bool:
    """Whether a weight or a switch says that something is to be trained. Raises LeftOut for a share."""
    asked = number(value)
    if asked not in (0, 1):
        raise LeftOut("a weight other than 0 and 1", {key: value})
    return bool(asked) != (key in NOT_TRAINED)


def is_switch(column: str, cells: Sequence[Any]) -> bool:
    """Whether a column of such a name is one.

    Weights are numbers. A switch says true or false in words, or 0 and 1 and nothing else: a column `loss` or
    `use` can also hold a figure or a text.
    """
    there = [cell for cell in cells if not missing(cell)]
    if column in WEIGHTS:
        return any(number(cell) is not None for cell in there)
    return all(number(cell) in (0, 1) for cell in there) or any(_word(cell) for cell in there)


def is_judgement(cells: Sequence[Any]) -> bool:
    """Whether a column holds true and false and nothing else: a label can also be the number of a class."""
    there = [cell for cell in cells if not missing(cell)]
    return bool(there) and all(_word(cell) in ("true", "false") for cell in there)


def is_bad(column: str, cell: Any) -> bool:
    """Whether a judgement says that people rejected the answer."""
    return _word(cell) == ("true" if column in JUDGED_BAD else "false")


def _word(cell: Any) -> str:
    """A cell that is true or false in words, in small letters; "" for another."""
    text = cell_text(cell).strip().lower() if isinstance(cell, str | bool) else ""
    return text if text in _WORDS else ""
