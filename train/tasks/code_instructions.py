"""Tasks for a programmer with their solutions, columns as in TokenBender/code_instructions_122k_alpaca_style.

`instruction`, `input`, `output`, and `text`, which is a rendering of the three that isn't used. Where a task
needs no input, the column says so in words ("Not applicable"). An instruction's solutions stay in one split.

Of tests/fixtures/code_instructions.jsonl the columns, the words for "no input" and the form of `text` are
real, the tasks made up.
"""

from __future__ import annotations

import hashlib

from train.cells import NO_VALUE
from train.errors import LeftOut, TrainError
from train.example import Example
from train.formats import add_once, instruction_turns
from train.loaded import Loaded
from train.recipe import Data
from train.table import Table, group_of, text_of


def read(table: Table, data: Data, loaded: Loaded) -> None:
    """Add each task with its solution once. Raises TrainError for columns that aren't there."""
    table.require("instruction", "output")
    if data.format == "text":
        raise TrainError("format: text has no meaning for the task code; leave format out")
    seen = set[str]()
    for number, row in enumerate(table.rows, 1):
        instruction, further = text_of(row, "instruction"), text_of(row, "input")
        if further.strip().strip("<>[]().").lower() in NO_VALUE:
            if further.strip():
                loaded.change("an input that says that there is none", number, repr(further))
            further = ""
        try:
            messages = instruction_turns(instruction, further, text_of(row, "output"))
        except LeftOut as reason:
            loaded.leave_out(str(reason), number, reason.seen)
            continue
        key = hashlib.sha256(" ".join(instruction.split()).casefold().encode()).hexdigest()
        add_once(Example(messages, "", group_of(row, data, key), row=number), seen, loaded)
