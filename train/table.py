"""Rows as they come, from a file (.jsonl, .json, .csv, .parquet) or from a data set of the hub."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.errors import TrainError
from train.recipe import Data

MAX_CELL = 2**24  # characters of a CSV's cell; the library allows 128 k
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """`where` names the source in messages; `columns` are those that any row has."""

    rows: Sequence[Row]
    columns: list[str]
    where: str

    def require(self, *columns: str) -> None:
        """Raise TrainError, which names the columns that are there, if one of `columns` isn't."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            raise TrainError(
                f"{self.where} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(self.columns)}. Rename it in the data, or correct task or group_by in the recipe"
            )


def read_table(data: Data) -> Table:
    """Read the file or the hub's data set that `data.path` names. Raises TrainError."""
    path = Path(data.path)
    if path.is_dir():
        raise TrainError(f"{data.path} is a folder; name a file in it: {', '.join(ENDINGS)}")
    if path.is_file():
        rows = _read_file(path)
    elif path.suffix in ENDINGS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.path):
        hint = (
            f"; make one with: python train/scores/sms_generator.py --out {path}"
            if data.task == "sms"
            else ""
        )
        raise TrainError(f"there is no file {data.path}{hint}")
    else:
        from train.hub import load  # the library takes seconds to import

        rows = load(data)
    if not rows:
        raise TrainError(f"{data.path} is empty: it has no row")
    return Table(rows, list(dict.fromkeys(column for row in rows for column in row)), data.path)


def text_of(row: Row, column: str) -> str:
    """The text of a cell, "" for none, without the halves of characters that UTF-8 can't write."""
    value = row.get(column)
    return "" if value is None else writable(str(value))


def writable(text: str) -> str:
    """`text` without lone surrogates, which JSON can hold and UTF-8 can't, and with plain line breaks."""
    return text.encode("utf-8", "replace").decode().replace("\r\n", "\n")


def group_of(row: Row, data: Data, own: str) -> str:
    """What keeps rows together when splitting: the cell of `data.group_by`, or the task's `own` choice."""
    cell = text_of(row, data.group_by) if data.group_by else ""
    return cell or own


def _read_file(path: Path) -> list[dict[str, Any]]:
    match path.suffix:
        case ".jsonl" | ".json":
            return _read_json(path)
        case ".csv":
            return _read_csv(path)
        case ".parquet":
            return _read_parquet(path)
    raise TrainError(f"{path} ends in {path.suffix!r}; known are {', '.join(ENDINGS)}")


def _read_json(path: Path) -> list[dict[str, Any]]:
    """One list, or an object a line, whichever the file holds."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if content.lstrip()[:1] == b"[":
        try:
            rows = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise TrainError(f"{path}: {error}") from None
        broken = next((at for at, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
        if broken:
            raise TrainError(f"{path}: entry {broken} of the list is no object with columns")
        return list(rows)
    lines = enumerate(content.split(b"\n"), 1)
    return [_read_line(path, number, line) for number, line in lines if line.strip()]


def _read_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{path}, line {number}: {error}; a line must be one JSON object") from None
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise TrainError(f"{path}, line {number}: a {kind} instead of an object with columns")
    return row


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Fields apart by comma, semicolon or tab, whichever the first line has most of."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainError(f"{path}: {error.reason} at byte {error.start}; save it as UTF-8") from None
    delimiter = max(",;\t", key=content.partition("\n")[0].count)
    # newline="" as csv wants it: a line break in quotation marks stays as it is.
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, Any]] = []
    try:
        header = [column.strip() for column in next(reader, [])]
        for fields in reader:
            if len(fields) not in (0, len(header)):
                raise TrainError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields for {len(header)} columns; "
                    'put a text with commas in "quotation marks"'
                )
            if fields:
                rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise TrainError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise TrainError(f"can't read {path}: {' '.join(str(error).split())}") from None
    return rows
