"""Rows of a file: JSON Lines, JSON, CSV or Parquet, compressed or not, by its name's ending.

| what people have | how it is read |
|---|---|
| UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one | as text |
| a list of objects; an object a line; objects one after another | each object is a row |
| a list of turns instead of an object | a row with the column `messages` |
| `{"data": [...]}`, `{"train": [...], "test": [...]}` | the rows in it, with their split |
| `{"prompt": [...], "completion": [...]}`, also as pandas writes it | columns |
| CSV with comma, semicolon, tab or bar, a line `sep=;`, quotation marks as `""` or `\\"` | by its header |
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

from train.cells import MISSING_IN_CSV
from train.errors import TrainError

MAX_CELL = 2**24  # characters of a CSV's cell; the library allows 128 k
JSON, LINES, CSV = (".json",), (".jsonl", ".ndjson", ".jsonlines"), (".csv", ".tsv")
PARQUET = (".parquet", ".pq")
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".tsv", "each of them with .gz, .zst or .bz2")
MARKS = {  # of the byte order, the longer ones first
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
SPLITS = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# A JSON object with one of these is a row, and not what rows are wrapped in.
COLUMNS = (
    *("messages", "conversations", "conversation", "contents", "dialog", "dialogue", "chat", "turns"),
    *("chosen", "instruction", "prompt", "text", "question"),
)

Rows = list[dict[str, Any]]


def is_data_file(path: Path) -> bool:
    """Whether the name ends as a file of rows does."""
    return _kind(path) in (*JSON, *LINES, *CSV, *PARQUET)


def _kind(path: Path) -> str:
    """The ending that says what is in the file, in small letters and without that of its compression."""
    packed = path.suffix.lower() in COMPRESSED
    return (path.with_suffix("") if packed else path).suffix.lower()


def read_rows(path: Path) -> Rows:
    """All rows of a file. Raises TrainError, with the line where there is one."""
    kind = _kind(path)
    if kind in PARQUET:
        return _read_parquet(path)
    if kind not in (*JSON, *LINES, *CSV):
        raise TrainError(f"{path} ends in {path.suffix!r}; known are {', '.join(ENDINGS)}")
    text = _text(path)
    return _read_csv(path, text, kind) if kind in CSV else _read_json(path, text)


def _text(path: Path) -> str:
    """What the file holds, unpacked and decoded."""
    content = path.read_bytes()
    if packing := COMPRESSED.get(path.suffix.lower()):
        import pyarrow  # type: ignore[import-untyped]

        try:
            with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), packing) as stream:
                content = stream.read()
        except (OSError, ValueError) as error:
            raise TrainError(f"can't unpack {path}: {' '.join(str(error).split())}") from None
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        file = shlex.quote(str(path))
        raise TrainError(
            f"{path}, line {line}: {error.reason} at byte {error.start}; save it as UTF-8, such as with: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {file} > {shlex.quote(f'utf8-{path.name}')}"
        ) from None


def _read_json(path: Path, text: str) -> Rows:
    """One list or object, or an object a line, whichever the file holds."""
    if text.lstrip()[:1] == "[":
        try:
            return _entries(path, json.loads(text, object_pairs_hook=_once))
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
        row = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{path}, line {number}: {error}; a line must be one JSON object") from None
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
    return isinstance(entry, list) and bool(entry) and all(isinstance(turn, dict) for turn in entry)


def _one_after_another(text: str) -> Rows | None:
    """Objects over several lines each; None if it isn't that."""
    decoder, rows, at = json.JSONDecoder(object_pairs_hook=_once), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        try:
            row, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        if not isinstance(row, dict):
            return None
        rows.append(row)
    return rows


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
    if all(isinstance(column, dict) and all(key.isdecimal() for key in column) for column in columns):
        columns = [list(column.values()) for column in columns]
    alike = all(isinstance(column, list) and len(column) == len(columns[0]) > 0 for column in columns)
    if len(columns) < 2 or not alike or any(_is_chat(column) for column in columns):
        return None
    return [dict(zip(whole, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _read_csv(path: Path, text: str, kind: str) -> Rows:
    """Fields apart by what `sep=` says, or by whichever sign the first line has most of."""
    skipped = 0
    if sign := re.match(r"sep=(.)\r?\n", text):  # Excel's own first line
        text, delimiter, skipped = text[sign.end() :], sign[1], 1
    else:
        delimiter = "\t" if kind == ".tsv" else max(",;\t|", key=text.partition("\n")[0].count)
    try:
        return _records(path, text, delimiter, skipped)
    except TrainError:
        if '\\"' not in text:
            raise
        # Quotation marks behind a backslash, as MySQL and Spark write them: doubled instead.
        doubled = re.sub(r'\\(["\\])', lambda found: '""' if found[1] == '"' else "\\", text)
        try:
            return _records(path, doubled, delimiter, skipped)
        except TrainError:
            pass
        raise


def _records(path: Path, text: str, delimiter: str, skipped: int) -> Rows:
    # newline="" as csv wants it: a line break in quotation marks stays as it is.
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: Rows = []
    try:
        header = [column.strip() for column in next(reader, [])]
        if twice := next((name for name in header if name and header.count(name) > 1), None):
            raise TrainError(f"{path} has two columns {twice!r}; rename one of them")
        for fields in reader:
            if len(fields) not in (0, len(header)):
                raise TrainError(
                    f"{path}, line {reader.line_num + skipped}: {len(fields)} fields for {len(header)} "
                    f'columns; put a text with {_sign(delimiter)} in "quotation marks"'
                )
            if fields:
                cells = (None if field in MISSING_IN_CSV else field for field in fields)
                rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise TrainError(f"{path}, line {reader.line_num + skipped}: {error}") from None
    return rows


def _sign(delimiter: str) -> str:
    return {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}.get(delimiter, repr(delimiter))


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows: Rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise TrainError(f"can't read {path}: {' '.join(str(error).split())}") from None
    return rows
