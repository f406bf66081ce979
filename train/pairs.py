"""Preferences: rows with a chosen and a rejected answer to one prompt.

| what a row has | how it is read |
|---|---|
| `prompt`, and two texts | a question and two answers |
| `prompt` as turns, and two answers as turns or texts | a chat and two answers |
| two whole chats | the prompt is what both begin with, turn by turn |
| `Human: ...`, `Assistant: ...` in the texts (Anthropic's HH) | as the turns that they are |
| two texts that are rendered already | the prompt is what both begin with |
| scores beside them (`score_chosen`, `rejected_rating`...) | left out, if the chosen one has no higher |

What turns can hold and what other columns mean is as for chats: `train.turns`, `train.row_columns`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from core.errors import LeftOut, TrainError
from train.cells import cell_text, number
from train.examples import Example, Loaded
from train.pair_rows import SIDES, pair_in
from train.row_columns import Beside
from train.sections import Data
from train.table import Row, Table, group_of, say_columns

# Other names of the two columns, and of the prompt's.
SPELLINGS = (
    *(("chosen_response", "rejected_response"), ("response_chosen", "response_rejected")),
    *(("chosen_answer", "rejected_answer"), ("text_chosen", "text_rejected"), ("preferred", "dispreferred")),
    *(("preferred", "rejected"), ("winner", "loser"), ("response_j", "response_k")),
)
PROMPTS = ("prompt", "question", "query", "instruction", "conversations", "conversation", "input", "user")
SCORED = re.compile(r"(?:(chosen|rejected)_)?(?:\w+_)?(score|rating|reward)(?:_(chosen|rejected))?")
MARGIN = "margin"  # of the chosen answer's score over the other's
OPPOSITE = "the opposite of an earlier row: both are trained"


def read_pairs(table: Table, data: Data, loaded: Loaded) -> None:
    """Add an example a row. Raises TrainError for a table without pairs."""
    names = _columns(table, data)
    loaded.layout = "preferences"
    if data.format == "text":
        raise TrainError("data.format: text is for plain texts, and preferences are answers; leave it out")
    scores = _scores(table)
    beside = Beside(
        table, "preferences", ("prompt", *SIDES, *names.values(), *scores.values(), MARGIN, data.group_by)
    )
    seen = dict[tuple[str, str], int]()
    for number_, cells in enumerate(table.rows, 1):
        row = dict(cells) | {ours: cells.get(theirs) for ours, theirs in names.items()}
        try:
            beside.check(row)
            _check_scores(row, scores)
            example, chats = pair_in(row)
        except LeftOut as reason:
            loaded.leave_out(str(reason), number_, reason.seen, reason.on_purpose)
            continue
        except UnicodeDecodeError:
            loaded.leave_out("bytes that are no text", number_)
            continue
        placed: dict[str, Any] = {
            "group": group_of(row, data, _asked(example)),
            "row": number_,
            "split": beside.split(row),
        }
        assert example.rejected
        example = replace(example, **placed, rejected=replace(example.rejected, **placed))
        changed = {k: v for chat in chats for k, v in chat.changed.items()}
        not_used = {k: v for chat in chats for k, v in chat.not_used.items()}
        loaded.tell(number_, changed, not_used | beside.not_used(cells))
        _add_once(example, seen, loaded)


def _columns(table: Table, data: Data) -> dict[str, str]:
    """Our names of the columns, with the table's where they are others. Raises TrainError if it has none."""
    there = {*table.columns}
    names = dict[str, str]()
    if not (found := columns_of_pairs(there)):
        raise TrainError(_without_pairs(table))
    if found != SIDES:
        names = dict(zip(SIDES, found, strict=True))
    asked = next((column for column in PROMPTS if column in there), None)
    if asked and asked != "prompt":
        names["prompt"] = asked
    return names


def columns_of_pairs(there: Collection[str]) -> tuple[str, str] | None:
    """Which of the columns that are there hold the chosen and the rejected answers."""
    return next((pair for pair in (SIDES, *SPELLINGS) if {*pair} <= {*there}), None)


def _without_pairs(table: Table) -> str:
    """What to say of rows that are no preferences."""
    there, label = {*table.columns}, next((c for c in ("label", "labels") if c in table.columns), "")
    columns = ", ".join(table.columns)
    sft = "To train on answers as they are, say SFTConfig in place of DPOConfig"
    if {"completion", "response", "answer", "output"} & there and label:
        return (
            f"{table.where} has one answer a row and a {label!r} that says whether it is good, as for KTO; "
            f"DPOConfig trains on pairs, columns chosen and rejected. {sft}"
        )
    return (
        f"{table.where} has no pairs of a chosen and a rejected answer; it has {columns}. {sft}; or say "
        f"which columns they are, such as {say_columns({'chosen': 'BETTER', 'rejected': 'WORSE'})}"
    )


def _scores(table: Table) -> dict[str, str]:
    """The column with the score of each side; of several kinds the first, none if there isn't a pair."""
    kinds: dict[str, dict[str, str]] = {}
    for column in table.columns:
        found = SCORED.fullmatch(column)
        if found and (side := found[1] or found[3]):
            kinds.setdefault(column.replace(side, ""), {})[side] = column
    return next((kind for kind in kinds.values() if {*kind} == {*SIDES}), {})


def _check_scores(row: Row, scores: Mapping[str, str]) -> None:
    """Raise LeftOut where the scores don't say that the chosen answer is better."""
    margin = number(row.get(MARGIN)) if not scores else None
    if margin is not None and not margin > 0:
        said = "is 0, so neither answer is preferred" if not margin else "says the opposite"
        raise LeftOut(f"the margin {said}", cell_text(row[MARGIN]))
    if not scores:
        return
    better, worse = (number(row.get(scores[side])) for side in SIDES)
    if better is None or worse is None:
        return
    seen = ", ".join(f"{scores[side]} {cell_text(row[scores[side]])}" for side in SIDES)
    if better < worse:
        raise LeftOut("the scores say the opposite: what is rejected has the higher one", seen)
    if better == worse:
        raise LeftOut("the scores are equal, so neither answer is preferred", seen)


def _asked(example: Example) -> str:
    """What the user says first: pairs of one question stay together when splitting."""
    return example.prompt or next(turn["content"] for turn in example.messages if turn["role"] == "user")


def _add_once(example: Example, seen: dict[tuple[str, str], int], loaded: Loaded) -> None:
    """Add the example, unless the same came before; one that says the opposite is told of."""
    assert example.rejected
    chosen, rejected = (repr((side.text, side.messages)) for side in (example, example.rejected))
    if (chosen, rejected) in seen:
        loaded.leave_out("the same as an earlier row", example.row, on_purpose=True)
        return
    if before := seen.get((rejected, chosen)):
        loaded.notice(OPPOSITE, example.row, f"row {before:,}")
    seen[chosen, rejected] = example.row
    loaded.examples.append(example)
