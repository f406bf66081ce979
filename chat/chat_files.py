"""What files of chats say, whoever wrote them: JSON, lines of JSON, ZIP files of both."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from io import BytesIO
from typing import Any, NoReturn

from chat.grow import Notes
from core.errors import ChatError

MAX_BYTES = 64 * 2**20  # of a file, unpacked
ZIP = b"PK\x03\x04"

# What is read of an archive: ChatGPT's has pictures and pages too.
_IN_ARCHIVE = re.compile(r"(?:.*/)?conversations(?:-\d+)?\.json|.*\.jsonl", re.IGNORECASE)


def read_values(data: bytes, notes: Notes) -> list[Any]:
    """All values in a file: most often one, a list of chats. Raises ChatError."""
    if len(data) > MAX_BYTES:
        raise _too_large(len(data))
    parts = _unpacked(data) if data.startswith(ZIP) else [data]
    return [value for part in parts for value in _of(part, notes)]


def _of(data: bytes, notes: Notes) -> list[Any]:
    """What a file says: one value, or a value a line. Raises ChatError."""
    try:
        return [_parsed(data)]
    except ValueError:
        pass
    try:
        lines = [line for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError:
        lines = []
    values = []
    for number, line in enumerate(lines):
        try:
            values.append(_parsed(line))
        except ValueError:
            if not number:
                break
            notes["lines that are no JSON left out"] += 1
    if not values:
        raise ChatError("This file is no JSON. Open one that holds chats, such as 'Save as JSON' makes.")
    return values


def _parsed(data: bytes | str) -> Any:
    """Raises ValueError, and ChatError for what is nested too deep."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except RecursionError:
        raise ChatError("This file is nested too deep to hold chats.") from None


def _unpacked(data: bytes) -> list[bytes]:
    """The files of an archive that may hold chats. Raises ChatError."""
    found, room = list[bytes](), MAX_BYTES
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            for name in filter(_IN_ARCHIVE.fullmatch, archive.namelist()):
                with archive.open(name) as file:
                    found.append(file.read(room + 1))
                room -= len(found[-1])
                if room < 0:
                    raise _too_large(MAX_BYTES - room)
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ChatError("This ZIP file is damaged, or has a password.") from None
    if not found:
        raise ChatError("This ZIP file has no conversations.json and no JSONL file.")
    return found


def _too_large(size: int) -> ChatError:
    most = MAX_BYTES // 2**20
    return ChatError(f"The file has over {size // 2**20:,} MB; {most} MB are read at once. Divide it.")
