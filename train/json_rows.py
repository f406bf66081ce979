"""Rows of JSON: one list or object, an object a line, objects one after another; also as people write them.

| what people have | how it is read |
|---|---|
| a list of objects; an object a line; objects one after another | each object is a row |
| a list of turns, or a chat of ChatGPT's export, instead of an object | a row with the column `messages` |
| `{"data": [...]}`, `{"train": [...], "test": [...]}` | the rows in it, with their split |
| `{"prompt": [...], "completion": [...]}`, also as pandas writes it | columns |
| commas before a closing bracket, or at the end of a line; Python's `{'a': None}` | as what they stand for |
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

from core.errors import TrainError
from train.turn_lists import is_export

SPLITS = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# A JSON object with one of these is a row, and not what rows are wrapped in.
COLUMNS = (
    *("messages", "conversations", "conversation", "contents", "dialog", "dialogue", "chat", "turns"),
    *("chosen", "instruction", "prompt", "text", "question", "chat_messages"),
)
# A string, or a comma that nothing follows but a closing bracket or the end.
_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*(?:[\]}]|\Z))', re.DOTALL)

EACH_LINE = "a line must be one JSON object"

Rows = list[dict[str, Any]]


def value_of(text: str) -> Any:
    """The value of a JSON text, of one with commas too many, or of what Python prints. Raises ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        reason = error
    try:
        return json.loads(_COMMA.sub(lambda found: found[1] or "", text), object_pairs_hook=_once)
    except json.JSONDecodeError:
        pass
    if text.lstrip()[:1] in ("{", "["):
        try:
            return ast.literal_eval(text.strip().removesuffix(","))
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            pass
    raise reason


def read_json(path: Path, text: str) -> Rows:
    """One list or object, or an object a line, whichever the file holds. Raises TrainError."""
    begin = text.lstrip()[:1]
    if begin and begin not in ("[", "{"):
        first = text.strip().partition("\n")[0]
        command = shlex.join(["mv", str(path), str(path.with_suffix(".csv"))])
        hint = f"if it is a CSV's header, name it so: {command}" if re.search("[,;\t|]", first) else EACH_LINE
        raise TrainError(f"{path} begins with {first[:40]!r}, which is no JSON; {hint}")
    if begin == "[":
        try:
            return _entries(path, value_of(text))
        except (ValueError, RecursionError) as error:
            if "\n[" not in text.strip():
                raise TrainError(f"{path}: {error}") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        rows = [_read_line(path, number, line) for number, line in lines]
    except TrainError:
        if (found := _one_after_another(text)) is None:
            raise
        rows = found
    if len(rows) == 1 and not any(str(key).strip().lower() in COLUMNS for key in rows[0]):
        return _unwrapped(path, rows[0])
    return _columns(rows[0]) or rows if len(rows) == 1 else rows


def _read_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = value_of(line)
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{path}, line {number}: {error}; {EACH_LINE}") from None
    if _is_chat(row):
        return {"messages": row}
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise TrainError(f"{path}, line {number}: a {kind} instead of an object with columns")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of its pairs. Raises ValueError where a key has two values, of which JSON keeps the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _entries(path: Path, entries: list[Any]) -> Rows:
    rows = [{"messages": entry} if _is_chat(entry) else entry for entry in entries]
    broken = next((at for at, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if broken:
        raise TrainError(f"{path}: entry {broken} of the list is no object with columns")
    if rows and {"role", "content"} <= {*rows[0]}:
        raise TrainError(f"{path} is one chat: a list of turns; put it in a list of chats: [[...], [...]]")
    if rows and all({*row} == {"row_idx", "row", "truncated_cells"} for row in rows):  # the hub's viewer
        return [row["row"] for row in rows]
    return rows


def _is_chat(entry: Any) -> bool:
    turns = isinstance(entry, list) and bool(entry) and all(isinstance(turn, dict) for turn in entry)
    return turns or is_export(entry)


def _one_after_another(text: str) -> Rows | None:
    """Objects over several lines each, perhaps with commas between them; None if it isn't that."""
    decoder, rows, at = json.JSONDecoder(object_pairs_hook=_once), [], 0
    while (at := _between(text, at)) < len(text):
        try:
            row, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        if not isinstance(row, dict):
            return None
        rows.append({"messages": row} if is_export(row) else row)
    return rows


def _between(text: str, at: int) -> int:
    """Where the next object begins, from `at` on."""
    found = re.compile(r"[\s,]*").match(text, at)
    return found.end() if found else at


def _unwrapped(path: Path, whole: dict[str, Any]) -> Rows:
    """The rows in an object around them, or that object as the only row."""
    lists = {
        key: value
        for key, value in whole.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) or _is_chat(row) for row in value)
    }
    if not lists:
        return _columns(whole) or [whole]
    if len(lists) == 1:
        (rows,) = lists.values()
        return _entries(path, rows)
    if not all(str(key).strip().lower() in SPLITS for key in lists):
        raise TrainError(
            f"{path} holds several lists of rows: {', '.join(lists)}; keep one of them in a file"
        )
    return [{"split": key} | row for key, rows in lists.items() for row in _entries(path, rows)]


def _columns(whole: dict[str, Any]) -> Rows | None:
    """The rows of an object of columns: lists, or pandas' objects from row to cell. None if it isn't that."""
    columns = list(whole.values())
    if len(columns) < 2:
        return None
    if all(isinstance(column, dict) and all(key.isdecimal() for key in column) for column in columns):
        columns = [list(column.values()) for column in columns]
    alike = all(isinstance(column, list) and len(column) == len(columns[0]) > 0 for column in columns)
    if not alike or any(_is_chat(column) for column in columns):
        return None
    return [dict(zip(whole, cells, strict=True)) for cells in zip(*columns, strict=True)]
