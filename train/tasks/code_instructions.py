"""Tasks for a programmer with their solutions, columns as in TokenBender/code_instructions_122k_alpaca_style.

`instruction`, `input`, `output`, and `text`, which is a rendering of the three that isn't used. Where a task
needs no input, the column says so in words ("Not applicable"). An instruction's solutions stay in one split.

Of tests/fixtures/code_instructions.jsonl the columns, the words for "no input" and the form of `text` are
real, the tasks made up.
"""

from __future__ import annotations

import hashlib

from train.errors import TrainError
from train.example import Example
from train.formats import LeftOut, add_once, instruction_chat
from train.loaded import Loaded
from train.recipe import Data
from train.table import Table, group_of, text_of

# In small letters, without a bracket or a full stop around it.
NO_INPUT = frozenset(
    (
        "",
        "-",
        "n/a",
        "na",
        "nil",
        "no input",
        "no input required",
        "noinput",
        "none",
        "not applicable",
        "null",
    )
)


def read(table: Table, data: Data, loaded: Loaded) -> None:
    """Add each task with its solution once. Raises TrainError for columns that aren't there."""
    table.require("instruction", "output")
    if data.format == "text":
        raise TrainError("format: text has no meaning for the task code; leave format out")
    seen = set[str]()
    for row in table.rows:
        instruction, further = text_of(row, "instruction"), text_of(row, "input")
        if further.strip().strip("<>[]().").lower() in NO_INPUT:
            loaded.changed["an input that says that there is none"] += bool(further.strip())
            further = ""
        try:
            messages = instruction_chat(instruction, further, text_of(row, "output"))
        except LeftOut as reason:
            loaded.left_out[str(reason)] += 1
            continue
        key = hashlib.sha256(" ".join(instruction.split()).casefold().encode()).hexdigest()
        add_once(Example(messages, "", group_of(row, data, key)), seen, loaded)
