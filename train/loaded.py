"""What became of a data set's rows: examples, or left out for a reason. Each row is one or the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from train.example import Example


@dataclass
class Loaded:
    """`rows_in` rows gave `examples`; `left_out` counts the others by reason.

    `changed` counts, by reason, the rows that are among the examples but not as they came. `layout` says how
    the rows were read: a task, or the format that their columns gave away.
    """

    examples: list[Example] = field(default_factory=list)
    rows_in: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    layout: str = ""


def lost(loaded: Loaded) -> int:
    """How many rows are neither an example nor left out for a reason; 0, or a reader has a defect."""
    return loaded.rows_in - len(loaded.examples) - loaded.left_out.total()
