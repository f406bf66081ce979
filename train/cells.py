"""What a cell of a row says as text: JSON for what has a type, "" for what is missing.

Missing is None, NaN, NaT, pandas' NA, and a text of nothing but blanks. In a CSV file, whose cells have no
types, what pandas and SQL write for a missing value is missing too (MISSING_IN_CSV); words that people write,
such as "None" or "N/A", are an answer like any other. Only in a column that a row can do without (an Alpaca
input, a system message) do such words mean that there is none (NO_VALUE).
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

MISSING_IN_CSV = frozenset(("NaN", "nan", "-nan", "<NA>", "NaT", "#N/A", "NULL", "null"))
# In small letters, without a bracket or a full stop around it.
NO_VALUE = frozenset(
    (
        *("", "-", "n/a", "na", "nan", "nil", "none", "null", "no input", "no input required", "noinput"),
        *("no context", "not applicable"),
    )
)

# With the semicolon, without which an address such as ?a=1&copy=2 would hold one.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.IGNORECASE)

# Of these, what can't be the address of a variable in C, as &sum; and &pi; can.
_COMMON = re.compile(
    r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|quot|apos|amp|lt|gt|nbsp|szlig|hellip"
    r"|[a-z]{1,6}(?:uml|acute|grave|circ|cedil|tilde|quo|dash));",
    re.IGNORECASE,
)


def missing(value: Any) -> bool:
    """Whether a cell holds no value."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, float | Decimal) and math.isnan(value)


def empty(value: Any) -> bool:
    """Whether a cell holds nothing: no value, an empty list or object, or their text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    return missing(value) or (isinstance(value, list | tuple | Mapping) and not value)


def cell_text(value: Any) -> str:
    """The text of a cell: a text as it is, anything else as JSON, "" for a missing value.

    Without the halves of characters that UTF-8 can't write. Raises ValueError for bytes that are no text.
    """
    if missing(value):
        return ""
    plain = f"{value:f}" if isinstance(value, Decimal) else _plain(value)  # with all of its digits
    return writable(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """`value` in the types that JSON has; NaN, which it hasn't, as null."""
    match value:
        case str() | bool() | int():
            return value
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case bytes():
            return value.decode()
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal() if value.is_finite():
            return float(value)
        case float() if math.isfinite(value):
            return value
        case float() if math.isinf(value):
            return str(value)
    return None if missing(value) else str(value)


def writable(text: str) -> str:
    """`text` without lone surrogates, which JSON can hold and UTF-8 can't, and with plain line breaks."""
    return text.encode("utf-8", "replace").decode().replace("\r\n", "\n")


def number(value: Any) -> float | None:
    """0 and 1, however they are written, as a number; another number as it is; None for anything else."""
    text = cell_text(value).strip().lower()
    if text in ("true", "yes", "false", "no"):
        return float(text in ("true", "yes"))
    try:
        return float(text)
    except ValueError:
        return None


def entity_in(text: str) -> str:
    """The first character of `text` that is written as HTML writes it, as `&quot;`; "" if none is."""
    if "&" not in text:  # nearly all texts, and quickly seen
        return ""
    return next((entity for entity in _COMMON.findall(text) if html.unescape(entity) != entity), "")


def without_entities(value: Any) -> Any:
    """A cell with the characters that such texts stand for, those of `&amp;quot;` too."""
    match value:
        case str():
            while (text := _ENTITY.sub(lambda entity: html.unescape(entity[0]), value)) != value:
                value = text
            return value
        case Mapping():
            return {key: without_entities(inner) for key, inner in value.items()}
        case list() | tuple():
            return [without_entities(inner) for inner in value]
    return value
