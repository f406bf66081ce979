"""One row of the data, before and after it became token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """A chat that ends with the assistant's turn, or a plain text; exactly one of the two is not empty.

    Rows of one `group` (an author, a thread, a campaign) stay in one split. A message has `role`, `content`
    and, of the assistant, perhaps `reasoning_content`. `untrained` are the places in `messages` of replies
    that are context only. A text begins with `prompt`, which isn't trained; its control tokens are tokens
    where it is `rendered`, and characters where it isn't. `pair` is a prompt with its completion as they
    came, of which `messages` is the chat. `split` is what the data itself says. `row` is the row's number,
    from 1; of equal examples it may differ. `true` is how likely the answer was to be what the task asks
    about, where whoever made the data up knows it. Of a preference, this is what people chose, and `rejected`
    the same with the other answer.
    """

    messages: list[dict[str, str]]
    text: str
    group: str
    untrained: frozenset[int] = frozenset()
    prompt: str = ""
    rendered: bool = False
    pair: tuple[str, str] | None = field(default=None, compare=False)
    split: str = field(default="", compare=False)
    row: int = field(default=0, compare=False)
    true: float | None = field(default=None, compare=False)
    rejected: Example | None = None


@dataclass(frozen=True)
class Encoded:
    """`mask[i]` is 1 where `ids[i]` is trained, else 0; both as long.

    `messages` is empty for a text, and where the template alone doesn't give these ids. Of its replies,
    `untrained` are context only. `rejected` as of an example.
    """

    ids: list[int]
    mask: list[int]
    messages: list[dict[str, str]]
    untrained: int = 0
    rejected: Encoded | None = None

    @property
    def length(self) -> int:
        """Tokens; of a pair, those of its longer side."""
        return max(len(side.ids) for side in sides([self]))


def sides(rows: Iterable[Encoded]) -> list[Encoded]:
    """The rows, and what is rejected of each beside it."""
    return [side for row in rows for side in (row, row.rejected) if side]


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

    def tell(self, row: int, changed: Mapping[str, str], not_used: Mapping[str, str]) -> None:
        """Count, by reason and name, what an example's row lost or had changed; each with what was seen."""
        for reason, seen in changed.items():
            self.change(reason, row, seen)
        for name, seen in not_used.items():
            self.ignore(name, row, seen)

    def _keep(self, reason: str, row: int, seen: str) -> None:
        if reason not in self.first:
            short = seen if len(seen) <= SHOWN else seen[: SHOWN - 3] + "..."
            self.first[reason] = f"row {row:,}" + (f": {short}" if short else "")


def lost(loaded: Loaded) -> int:
    """How many rows are neither an example nor left out for a reason; 0, or a reader has a defect."""
    return loaded.rows_in - len(loaded.examples) - loaded.left_out.total()
