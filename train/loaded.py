"""What became of a data set's rows: examples, or left out for a reason. Each row is one or the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from train.example import Example

SHOWN = 70  # characters of an example


@dataclass
class Loaded:
    """`rows_in` rows gave `examples`; `left_out` counts the others by reason.

    `changed` counts, by reason, the rows that are among the examples but not as they came; `noticed` those
    that are as they came, and perhaps not as their author thinks. `not_used` counts the rows that have a
    column, or a key in a turn, which training doesn't look at. `first` has, by reason, the number of the
    first such row, and what was seen. `on_purpose` are the reasons of `left_out` that the author or the
    task wants, so that many such rows are no sign of a mistake. `layout` says how the rows were read: a
    task, or the format that their columns gave away.
    """

    examples: list[Example] = field(default_factory=list)
    rows_in: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    noticed: Counter[str] = field(default_factory=Counter)
    not_used: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    on_purpose: set[str] = field(default_factory=set)
    layout: str = ""

    def leave_out(self, reason: str, row: int, seen: str = "", on_purpose: bool = False) -> None:
        """Count a row that is no example."""
        self.left_out[reason] += 1
        self._keep(reason, row, seen)
        if on_purpose:
            self.on_purpose.add(reason)

    def change(self, reason: str, row: int, seen: str = "") -> None:
        """Count a row that is an example, but not as it came."""
        self.changed[reason] += 1
        self._keep(reason, row, seen)

    def notice(self, reason: str, row: int, seen: str = "") -> None:
        """Count a row that is an example as it came, and about which there is something to say."""
        self.noticed[reason] += 1
        self._keep(reason, row, seen)

    def ignore(self, name: str, row: int, seen: str = "") -> None:
        """Count a row with a column or a key that isn't used."""
        self.not_used[name] += 1
        self._keep(name, row, seen)

    def _keep(self, reason: str, row: int, seen: str) -> None:
        if reason not in self.first:
            short = seen if len(seen) <= SHOWN else seen[: SHOWN - 3] + "..."
            self.first[reason] = f"row {row:,}" + (f": {short}" if short else "")


def lost(loaded: Loaded) -> int:
    """How many rows are neither an example nor left out for a reason; 0, or a reader has a defect."""
    return loaded.rows_in - len(loaded.examples) - loaded.left_out.total()
