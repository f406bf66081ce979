"""Train, validation and test, by a hash of each row's group: fixed, with no seed, and apart.

A group (an author, a thread, a campaign) falls in the same split in every run, whatever else is in the data.
Few groups may leave a split without rows: training goes without it, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.errors import TrainError
from train.examples import Encoded, Example, Loaded
from train.sections import Data

if TYPE_CHECKING:
    pass

NAMES = ("train", "validation", "test")
MOST_HELD_OUT = 0.5  # a share; where a recipe asks for more, a train split without rows isn't chance
WITHOUT = {
    "validation": "the last adapter is kept instead of the best, and nothing stops the training early",
    "test": "there are no scores, and the conversion measures on chats of its own",
}


@dataclass
class Splits:
    """`repeated` rows are in none of the three: their text is in a split that is measured on.

    `notes` say which split has no rows although it was asked for, and what that means for the run.
    """

    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    repeated: int = 0
    notes: list[str] = field(default_factory=list)


def split_examples(examples: Sequence[Example], data: Data) -> Splits:
    """Split by group, in about the shares that `data` asks for. Raises TrainError if none is to be trained.

    Where different groups hold the same text, the test split keeps it, else the validation split.
    """
    named = {example.split for example in examples}  # by the data itself
    names = [_split_of(example, named, data) for example in examples]
    keys = [_key(example) for example in examples]
    home: dict[bytes, int] = {}
    for name, key in zip(names, keys, strict=True):
        home[key] = max(home.get(key, 0), NAMES.index(name))
    splits = Splits()
    for example, name, key in zip(examples, names, keys, strict=True):
        if NAMES[home[key]] == name:
            getattr(splits, name).append(example)
        else:
            splits.repeated += 1
    groups = len({example.group for example in examples})
    if not splits.train:
        if data.validation + data.test > MOST_HELD_OUT:
            raise TrainError(
                f"the train split is empty: the {len(examples)} rows of {data.path} are "
                f"{_groups(groups, data)}, which stay together; lower data.validation and data.test, choose "
                "another group_by, or bring more rows"
            )
        held_out = [example for example in examples if _is_held_out(example)]
        if len(held_out) == len(examples):
            named_so = " or ".join(sorted({repr(example.split) for example in held_out}))
            raise TrainError(f"all {len(examples)} rows of {data.path} are named {named_so}, none train")
        # Few groups, and chance held them all out; what the data holds out stays where it says.
        splits = Splits(train=[example for example in examples if not _is_held_out(example)])
        for example in held_out:
            getattr(splits, example.split).append(example)
    splits.notes = _notes(splits, groups, data)
    return splits


def split_of(group: str, data: Data) -> str:
    """The split of a group: "train", "validation" or "test"."""
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    if place < data.test:
        return "test"
    return "validation" if place < data.test + data.validation else "train"


def _is_held_out(example: Example) -> bool:
    return example.split in ("validation", "test")


def _split_of(example: Example, named: Collection[str], data: Data) -> str:
    """The split that the data names; some of its train rows are put aside for one that it doesn't name."""
    if _is_held_out(example):
        return example.split
    by_hash = split_of(example.group, data)
    return "train" if example.split and by_hash in named else by_hash


def _key(example: Example) -> bytes:
    """A row is known by its longest turn: a short one, such as a greeting or a label, may be anybody's."""
    turns = (
        turn["content"] for turn in example.messages if turn["role"] != "system"
    )  # all chats may share it
    longest = example.text or max(turns, key=len)
    return hashlib.sha256(" ".join(longest.split()).casefold().encode()).digest()


def _notes(splits: Splits, groups: int, data: Data) -> list[str]:
    rows = sum(len(getattr(splits, name)) for name in NAMES)
    asked = {"validation": data.validation, "test": data.test}
    return [
        f"note: no {name} split, as {rows:,} rows in {_groups(groups, data)} are too few: {WITHOUT[name]}"
        for name, share in asked.items()
        if share and not getattr(splits, name)
    ]


def _groups(count: int, data: Data) -> str:
    """How many there are, and what one is."""
    kind = repr(data.group_by) if data.group_by else "one question, author, thread or the like"
    return f"{count:,} group{'' if count == 1 else 's'} ({kind})"


@dataclass
class Prepared:
    """The splits as token ids, and in `examples` as text; a row can be several sequences of ids.

    `too_long` rows are in neither: they have more than sft.max_length tokens; `longest` is an example of one.
    """

    train: list[Encoded]
    validation: list[Encoded]
    test: list[Encoded]
    examples: Splits
    loaded: Loaded
    too_long: int
    longest: str = ""
