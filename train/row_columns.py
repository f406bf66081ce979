"""What the columns beside a row's question and answer mean, so that none changes the meaning unseen.

| column | what becomes of it |
|---|---|
| `system`, `system_prompt`, `system_message` | the chat's system message |
| `history` | earlier turns: pairs of question and answer, or messages |
| `reasoning_content`, `thinking`, `reasoning`, `complex_cot`, `cot` | the thought before the answer |
| `weight`, `train`, `masked` and the like (`train.refused`) | 0 or false: the row isn't trained |
| `label`, `chosen`, `rejected` and the like, of true and false | a rejected answer isn't trained |
| `split` | train, validation or test, where it says more than one of them |
| tools, pictures, sound, video | leave the row out, where they aren't empty |
| any other | isn't used, and is named before the run |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.errors import LeftOut, TrainError
from train.cells import NO_VALUE, cell_text, empty, missing
from train.json_rows import SPLITS
from train.sections import Data
from train.switches import (
    JUDGED,
    JUDGED_BAD,
    NOT_TRAINED,
    TRAINED,
    WEIGHTS,
    is_bad,
    is_judgement,
    is_switch,
    wanted,
)
from train.table import Row, Table, say_columns, text_of
from train.turn_lists import listed
from train.turns import MEDIA, PICTURES, THOUGHTS, TOOLS, TOOLS_USED, read_content

SYSTEM = ("system", "system_prompt", "system_message", "systeminstruction", "system_instruction")
THOUGHT_COLUMNS = (*THOUGHTS, "complex_cot", "cot")
MORE = ("input", "context")
LABELS = ("label", "labels", "target", "class")
# Which columns a format looks at, beside its own.
USED: Mapping[str, tuple[str, ...]] = {
    "messages": SYSTEM,
    "sharegpt": SYSTEM,
    "alpaca": (*SYSTEM, *MORE, *THOUGHT_COLUMNS, "history"),
    "prompt-completion": (*SYSTEM, "context", *THOUGHT_COLUMNS, "history"),
    "text": (),
    "preferences": (*SYSTEM, *MORE, "history"),
}


class Beside:
    """What the columns beside those of `layout` say of each row of a table."""

    def __init__(self, table: Table, layout: str, used: Iterable[str | None]) -> None:
        def there(names: Iterable[str]) -> dict[str, list[Any]]:
            own = {*used, *USED[layout]}
            return {
                n: [row.get(n) for row in table.rows] for n in names if n in table.columns and n not in own
            }

        switches = there((*TRAINED, *NOT_TRAINED))
        self._switches = [column for column, cells in switches.items() if is_switch(column, cells)]
        judged = there((*JUDGED, *JUDGED_BAD) if layout != "text" else ())
        self._judged = [column for column, cells in judged.items() if is_judgement(cells)]
        self._split = _says_split(table)
        known = {*used, *USED[layout], *TOOLS, *MEDIA, *self._switches, *self._judged}
        known |= {"split"} if self._split else set()
        self._others = [column for column in table.columns if column not in known]

    def check(self, row: Row) -> None:
        """Raise LeftOut for a row that says that it isn't to be trained, or that is no chat of text."""
        if tools := next((column for column in TOOLS if not empty(row.get(column))), None):
            unused = say_columns({"unused": tools})
            raise LeftOut(f"{TOOLS_USED}; where no reply calls one: {unused}", f"the column {tools}")
        if media := next((column for column in MEDIA if not empty(row.get(column))), None):
            raise LeftOut(PICTURES, f"the column {media}")
        for column in self._switches:
            if not missing(row.get(column)) and not _wanted(column, row[column]):
                reason = "its row says that it isn't to be trained"
                raise LeftOut(reason, {column: row[column]}, on_purpose=True)
        for column in self._judged:
            if not missing(row.get(column)) and is_bad(column, row[column]):
                said = cell_text(row[column]).strip().lower()
                raise LeftOut(f"{column} {said}: an answer that people rejected", on_purpose=True)

    def split(self, row: Row) -> str:
        """The split that the row itself names, or ""."""
        return SPLITS[cell_text(row.get("split")).strip().lower()] if self._split else ""

    def not_used(self, row: Row) -> dict[str, str]:
        """The columns with something in them that nobody looks at, and what is in them."""
        return {
            f"column {column!r}": repr(row[column]) for column in self._others if not missing(row.get(column))
        }


def _wanted(column: str, cell: Any) -> bool:
    """Whether a row's own switch is on. Raises LeftOut, with what can be done about a weight."""
    try:
        return wanted(column, cell)
    except LeftOut as reason:
        kind = "a weight other than 0 and 1" if column in WEIGHTS else "neither true nor false"
        raise LeftOut(
            f"column {column!r}: {kind}; to train all rows alike: {say_columns({'unused': column})}",
            cell,
        ) from reason


def _says_split(table: Table) -> bool:
    """Whether a column names each row's split, and more than one of them."""
    cells = {cell_text(row.get("split")).strip().lower() for row in table.rows}
    return "split" in table.columns and cells <= {*SPLITS} and len({SPLITS[cell] for cell in cells}) > 1


def in_front(row: Row, layout: str, turns: list[Any]) -> list[Any]:
    """The turns that other columns put before those of the chat. Raises LeftOut."""
    said = (_optional({column: read_content(row.get(column))[0]}, column) for column in SYSTEM)
    text = next(filter(None, said), "")
    own = [turn.get("content", turn.get("value")) for turn in turns[:1] if isinstance(turn, dict)]
    system = [{"role": "system", "content": text}] if text and text not in own else []
    if "history" not in USED[layout] or empty(row.get("history")):
        return system
    return [*system, *_history(row["history"])]


def _history(history: Any) -> list[Any]:
    """Turns of pairs (question, answer), or of messages. Raises LeftOut."""
    turns: list[Any] = []
    for entry in listed(history):
        if isinstance(entry, dict):
            turns.append(entry)
        elif isinstance(entry, list | tuple) and len(entry) == 2:
            roles = ("user", "assistant")
            turns += ({"role": role, "content": text} for role, text in zip(roles, entry, strict=True))
        else:
            raise LeftOut("a history that is neither pairs nor messages", entry)
    return turns


def further(row: Row, changed: dict[str, str]) -> str:
    """What is asked about, beside the instruction."""
    parts = []
    for column in MORE:
        text = text_of(row, column).strip()
        if text and text.strip("<>[]().").lower() in NO_VALUE:
            changed["an input that says that there is none"] = repr(text)
        elif text:
            parts.append(text)
    return "\n\n".join(parts)


def _optional(row: Row, column: str) -> str:
    text = text_of(row, column)
    return "" if text.strip().strip("<>[]().").lower() in NO_VALUE else text


def thought(row: Row) -> dict[str, str]:
    """The key of a message for what is thought before the answer, if the row says that."""
    text = next((text for text in (text_of(row, column) for column in THOUGHT_COLUMNS) if text), "")
    return {"reasoning_content": text} if text else {}


def refuse_labels(table: Table, data: Data) -> None:
    """Raise TrainError for texts with labels, of which the labels would not be trained."""
    label = next((column for column in LABELS if column in table.columns), None)
    if label and "text" not in data.columns:
        raise TrainError(
            f"{table.where} has texts with a {label!r}: the labels would not be trained. Say "
            f"{say_columns({'prompt': 'text', 'completion': label})}; or, to train the texts alone, "
            f"{say_columns({'text': 'text'})}"
        )
