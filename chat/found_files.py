"""Files that anybody may have put here, read with care: bounded, never through a link, plain files only."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from core.entry import shown
from core.errors import ChatError
from core.machine import human_size

LIMIT = 4_000_000  # bytes: what a run or a conversion writes of this kind has some thousands
NAMES = 2_000  # of a folder that are looked at
BLOCKS, BLOCK = 64, 64 * 1024  # of a long file

# A link as the last name isn't followed, and a pipe doesn't wait for its writer. Windows has neither.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

M = TypeVar("M", bound=BaseModel)


def inside(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in `folder`, by name; nothing where there is no such folder. Raises ChatError."""
    try:
        with os.scandir(folder) as found:
            return sorted(islice(found, NAMES), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ChatError(f"{folder.name}/ can't be read: {error.strerror}") from None


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a plain file; its size in bytes comes with it. The folder of `path` is one without links.

    Raises FileNotFoundError, and ChatError for a link, a pipe and what may not be read.
    """
    if os.path.realpath(path.parent) != str(path.parent):
        raise ChatError(f"{path.parent.name}/ is a link, which isn't followed")
    try:
        fd = os.open(path, _FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        link = error.errno == errno.ELOOP
        reason = "is a link, which isn't followed" if link else f"can't be read: {error.strerror}"
        raise ChatError(f"{path.name} {reason}") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise ChatError(f"{path.name} is no file")
    with open(fd, "rb") as file:
        yield file, found.st_size


def read_text(path: Path, limit: int = LIMIT) -> str:
    """The text of a file. Raises FileNotFoundError, and ChatError for what isn't such a file."""
    with opened(path) as (file, size):
        if size > limit:
            raise ChatError(f"{path.name} has {human_size(size)}, which is no such file any more")
        try:
            return file.read(limit).decode()
        except UnicodeDecodeError:
            raise ChatError(f"{path.name} is no text in UTF-8") from None
        except OSError as error:
            raise ChatError(f"{path.name} can't be read: {error.strerror}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError and ChatError."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        reason = (
            error.msg if isinstance(error, json.JSONDecodeError) else "what it holds is too large or deep"
        )
        raise ChatError(f"{path.name} isn't whole, or no JSON ({reason})") from None
    if not isinstance(found, dict):
        raise ChatError(f"{path.name} holds no JSON object")
    return found


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The JSON objects of a file with one a line; and whether these are all that it has.

    Of a long file, pieces from its beginning to its end. A line that is cut or foreign is left out.
    Raises FileNotFoundError and ChatError.
    """
    with opened(path) as (file, size):
        whole = size <= BLOCKS * BLOCK
        starts = [0] if whole else [i * (size - BLOCK) // (BLOCKS - 1) for i in range(BLOCKS)]
        lines: list[bytes] = []
        try:
            for start in starts:
                file.seek(start)
                found = file.read(BLOCKS * BLOCK if whole else BLOCK).split(b"\n")
                lines += found[1 if start else 0 : None if whole else -1]
        except OSError as error:
            raise ChatError(f"{path.name} can't be read: {error.strerror}") from None
    return [row for line in lines if (row := _row(line))], whole


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line) if line else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def checked(kind: type[M], content: dict[str, Any], file: str, notes: list[str]) -> M:
    """`content` as a `kind`, whose fields have defaults: what is wrong is left out, and told in `notes`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        wrong = {each["loc"][0]: each for each in error.errors()}
    for each in wrong.values():
        where = ".".join(map(str, each["loc"]))
        notes.append(f"{file}: {where!r} is {quoted(each['input'])}: {each['msg'].lower()}")
    return kind.model_validate({key: value for key, value in content.items() if key not in wrong})


def quoted(value: Any) -> str:
    """A JSON value in a sentence, shortened."""
    try:
        return shown(value)
    except (ValueError, RecursionError):  # a number of 5,000 digits
        return "a value that is too large"
