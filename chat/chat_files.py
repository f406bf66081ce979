"""What files of chats say, whoever wrote them: JSON, or lines of JSON."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from chat.grow import Notes
from core.errors import ChatError


def read_values(data: bytes, notes: Notes) -> list[Any]:
    """What a file says: one value, most often a list of chats, or a value a line. Raises ChatError."""
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
