"""Marketing messages and whether they sold: a table with the column `message` and what came of it.

| columns | meaning |
|---|---|
| `converted` | 0 or 1 (or no, yes, false, true): the row is one reader |
| `conversion_rate` | the share of readers who bought: 0.031 or 3.1% |
| `sends`, `conversions` | the same share as two numbers |
| `campaign` | its messages stay in one split; without it, equal messages do |

Of several, the first in this table counts. The assistant answers with one word of LABELS, so the model's
likelihood of a purchase is that of `yes` against `no`. A share becomes one answer by a draw: `yes` with that
probability, decided by a hash of the row, the same each time. So the shares themselves are what the trained
likelihoods aim at; a threshold would make them something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from train.errors import TrainError
from train.example import Example
from train.loaded import Loaded
from train.recipe import Data
from train.table import Row, Table, group_of, text_of

LABELS = ("yes", "no")
QUESTION = "Will somebody who gets this message buy? Answer yes or no."

YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


def prompt(message: str) -> str:
    """What the user asks."""
    return f"{QUESTION}\n\n{message}"


def read(table: Table, data: Data, loaded: Loaded) -> None:
    """Add a question and its answer a row. Raises TrainError for columns that aren't there."""
    table.require("message")
    if data.format == "text":
        raise TrainError("format: text has no meaning for the task sms; leave format out")
    share = _find_share(table)
    campaign = "campaign" if "campaign" in table.columns else "message"
    for number, row in enumerate(table.rows, 1):
        message, value = text_of(row, "message").strip(), share(row)
        if not message:
            loaded.leave_out("no message", number)
        elif value is None or not 0 <= value <= 1:
            loaded.leave_out("no share of conversions between 0 and 1", number, repr(value))
        else:
            label = LABELS[0] if _drawn(message, text_of(row, "campaign"), value) else LABELS[1]
            turns = [("user", prompt(message)), ("assistant", label)]
            group = group_of(row, data, text_of(row, campaign) or message)
            chat = [{"role": role, "content": content} for role, content in turns]
            loaded.examples.append(Example(chat, "", group, row=number))


def _find_share(table: Table) -> Callable[[Row], float | None]:
    if "converted" in table.columns:
        return _converted
    if "conversion_rate" in table.columns:
        return _rate
    if "sends" in table.columns or "conversions" in table.columns:
        table.require("sends", "conversions")
        return _counted
    raise TrainError(
        f"{table.where} doesn't say which messages sold: it has {', '.join(table.columns)}; add a column "
        "'converted' (0 or 1), 'conversion_rate', or 'sends' and 'conversions'"
    )


def _converted(row: Row) -> float | None:
    cell = text_of(row, "converted").strip().lower()
    return 1.0 if cell in YES else 0.0 if cell in NO else None


def _rate(row: Row) -> float | None:
    cell = text_of(row, "conversion_rate").strip()
    value = _number(cell.removesuffix("%"))
    return value / 100 if value is not None and cell.endswith("%") else value


def _counted(row: Row) -> float | None:
    sends, conversions = _number(text_of(row, "sends")), _number(text_of(row, "conversions"))
    return conversions / sends if sends and conversions is not None else None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _drawn(message: str, campaign: str, probability: float) -> bool:
    digest = hashlib.sha256(f"{campaign}\0{message}\0{probability}".encode()).digest()
    return int.from_bytes(digest[:8]) < probability * 2**64
