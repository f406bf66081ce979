"""Rows as they come, from a file or from a data set of the hub, and their columns by any spelling."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.command import command_line
from core.errors import TrainError
from core.hub import look_up, offline
from train.cells import cell_text, without_entities
from train.row_files import ENDINGS, is_data_file, read_rows
from train.sections import Data

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """`where` names the source in messages; `columns` are those that any row has."""

    rows: Sequence[Row]
    columns: list[str]
    where: str

    def column(self, name: str) -> list[Any]:
        """The cells of a column, None where a row hasn't one."""
        return [row.get(name) for row in self.rows]

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
    rows = read_rows(Path(data.path)) if is_file(data) else load(data)
    if not any(rows):
        raise TrainError(f"{data.path} is empty: it has no row")
    if data.unescape_html:
        rows = [without_entities(row) for row in rows]
    return spelled(Table(rows, _columns(rows), data.path), data.columns)


def is_file(data: Data) -> bool:
    """Whether `data.path` is a file here, not a name on the hub. Raises TrainError for what is neither."""
    path = Path(data.path)
    if path.is_dir():
        raise TrainError(f"{data.path} is a folder; name a file in it: {', '.join(ENDINGS)}")
    if path.is_file():
        return True
    if not is_data_file(path) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.path):
        return False
    make = command_line("train/tasks/make_sms.py", ["--out", path])
    hint = f"; make one with: {make}" if data.task == "sms" else ""
    raise TrainError(f"there is no file {data.path}{hint}")


def spelled(table: Table, given: Mapping[str, str]) -> Table:
    """The table with columns named as the formats name them, whatever their capitals are.

    `given` is the recipe's `data.columns`: the name that a format knows, and the data's. A column whose name
    another one has already keeps its own. Raises TrainError for one that isn't there.
    """
    near = {_plain(column): column for column in table.columns}
    given = {
        ours: theirs if theirs in table.columns else near.get(_plain(theirs), theirs)
        for ours, theirs in given.items()
    }
    absent = [column for column in given.values() if column not in table.columns]
    if absent:
        raise TrainError(
            f"data.columns: {table.where} has no column {', '.join(map(repr, absent))}; it has "
            f"{', '.join(table.columns)}"
        )
    names = {theirs: ours for ours, theirs in given.items()}
    names |= {
        column: f"{column} (as it is)" for column in given if column in table.columns and column not in names
    }
    taken = {*given, *(column for column in table.columns if column == _plain(column))}
    for column in table.columns:
        if column not in names and _plain(column) not in taken:
            names[column] = _plain(column)
            taken.add(_plain(column))
    if all(theirs == ours for theirs, ours in names.items()):
        return table
    rows = [{names.get(key, key): value for key, value in row.items()} for row in table.rows]
    return Table(rows, _columns(rows), table.where)


def say_columns(columns: Mapping[str, str]) -> str:
    """How a user says which column is which: options that can be pasted, and what a recipe has instead."""
    options = (
        f"--set {shlex.quote(f'data.columns.{ours}={_yaml(theirs)}')}" for ours, theirs in columns.items()
    )
    return f"{' '.join(options)} (in a recipe, data.columns: {_yaml(dict(columns))})"


def _yaml(value: Any) -> str:
    """In one line, as a recipe's YAML has it."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(column) for row in rows for column in row))


def text_of(row: Row, column: str) -> str:
    """The text of a cell, as `train.cells.cell_text` gives it: JSON for what isn't text, "" for none."""
    return cell_text(row.get(column))


def group_of(row: Row, data: Data, own: str) -> str:
    """What keeps rows together when splitting: the cell of `data.group_by`, or the task's `own` choice."""
    cell = text_of(row, data.group_by) if data.group_by else ""
    return cell or own


def load(data: Data) -> list[dict[str, Any]]:
    """All rows of `data.split`. No code of the data set is run. Raises TrainError."""
    import datasets

    reachable = look_up("dataset", data.path, data.revision)
    try:
        with offline(not reachable):
            found = datasets.load_dataset(data.path, data.name, split=data.split, revision=data.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if not reachable:
            raise TrainError(
                f"can't reach the hub for the data set {data.path!r}, and it wasn't fetched before; connect "
                "and try again, or download its file elsewhere and give it as data.path"
            ) from None
        reason = " ".join(str(error).split())
        raise TrainError(f"can't load the data set {data.path!r}: {reason}") from None
    rows: list[dict[str, Any]] = found.to_list()
    return rows
