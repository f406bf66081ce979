"""Train, validation and test, by a hash of each row's group: fixed, with no seed, and apart.

A group (an author, a thread, a campaign) falls in the same split in every run, whatever else is in the data.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from train.errors import TrainError
from train.example import Example
from train.recipe import Data

NAMES = ("train", "validation", "test")


@dataclass
class Splits:
    """`repeated` rows are in none of the three: their text is in a split that is measured on."""

    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    repeated: int = 0


def split_examples(examples: Sequence[Example], data: Data) -> Splits:
    """Split by group, in about the shares that `data` asks for. Raises TrainError for a split without rows.

    Where different groups hold the same text, the test split keeps it, else the validation split.
    """
    names = [split_of(example.group, data) for example in examples]
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
    _check(splits, Counter(example.group for example in examples), data)
    return splits


def split_of(group: str, data: Data) -> str:
    """The split of a group: "train", "validation" or "test"."""
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    if place < data.test:
        return "test"
    return "validation" if place < data.test + data.validation else "train"


def _key(example: Example) -> bytes:
    """A row is known by its longest turn: a short one, such as a greeting or a label, may be anybody's."""
    turns = (
        turn["content"] for turn in example.messages if turn["role"] != "system"
    )  # all chats may share it
    longest = example.text or max(turns, key=len)
    return hashlib.sha256(" ".join(longest.split()).casefold().encode()).digest()


def _check(splits: Splits, groups: Counter[str], data: Data) -> None:
    shares = {
        "train": 1 - data.validation - data.test,
        "validation": data.validation,
        "test": data.test,
    }
    for name, share in shares.items():
        if getattr(splits, name) or (name != "train" and not share):
            continue
        kind = f"{data.group_by!r}" if data.group_by else "author, thread, campaign or the like"
        cure = "lower data.validation and data.test" if name == "train" else f"raise data.{name}"
        aside = "" if name == "train" else f", or say {name}: 0 to go without"
        raise TrainError(
            f"the {name} split is empty: the {groups.total()} rows of {data.path} are {len(groups)} groups "
            f"({kind}), which stay together; {cure}, choose another group_by, or bring more rows{aside}"
        )
