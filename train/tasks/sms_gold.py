"""A gold set of marketing messages whose features are known, as each is put together of parts with labels;
and how much of it a reading finds.

Nothing of it is real. Half of the parts, in `sms_gold.json`, are hard on purpose: numbers in words, "buy one
get one", three languages in a message, addresses in disguise, and what only looks like a discount, a
deadline, a name or an opt-out. They were written before the rules of `core/sms_rules.py` were first run on
them.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.sms import FIELDS, Features
from core.sms_rules import hybrid

PARTS = Path(__file__).with_suffix(".json")
FLAGS = ("deadline", "link", "call_to_action", "personal", "emoji", "opt_out")
NOTHING = Features(discount="none", size=0, currency="none", **dict.fromkeys(FLAGS, False))
BRANDS = ("Lumovi", "Fernwaye", "Oakrill", "Brisvale", "Nordim")


def gold(count: int, seed: int) -> list[tuple[str, Features]]:
    """Make `count` different messages, in each part easy or hard by a coin; the same for the same seed."""
    slots = json.loads(PARTS.read_text(encoding="utf-8"))
    draw = random.Random(seed)
    made: dict[str, Features] = {}
    while len(made) < count:
        chosen = [draw.choice(slot["hard" if draw.random() < 0.5 else "easy"]) for slot in slots.values()]
        text = " ".join(filter(None, [f"{draw.choice(BRANDS)}:", *(part for part, _ in chosen)]))
        truth = NOTHING.model_dump()
        for _, labels in chosen:
            truth |= labels
        made[text] = Features(**truth)
    return list(made.items())


Both = tuple[float | None, float | None]  # precision and recall; None where nothing counts


@dataclass(frozen=True)
class Extractor:
    """What one found of the gold set's messages, and what it cost."""

    fields: dict[str, Both]
    seconds: float  # a message
    messages: int
    unfilled: int = 0  # readings that weren't to be had
    asked: int = 0  # messages that a model had to read


def compared(
    truth: Sequence[Features],
    found: Sequence[Features],
    unsure: Sequence[Collection[str]],
    read: Sequence[Features | None],
    seconds: tuple[float, Sequence[float]],
) -> dict[str, Extractor]:
    """Rules, a model and the hybrid side by side on the same messages.

    What the rules `found` and where they are `unsure`; how the model `read` each; `seconds` a message of the
    rules, and those of each reading.
    """
    by_rule, by_model = seconds
    both = [hybrid(*each) for each in zip(found, unsure, read, strict=True)]
    needed = [second if doubts else 0.0 for second, doubts in zip(by_model, unsure, strict=True)]
    failed = sum(bool(doubts) and told is None for doubts, told in zip(unsure, read, strict=True))
    mean, count = by_rule + statistics.fmean(needed), len(truth)
    asked = sum(map(bool, unsure))
    return {
        "rules": Extractor(found_of(truth, found), by_rule, count),
        "model": Extractor(found_of(truth, read), statistics.fmean(by_model), count, read.count(None), count),
        "hybrid": Extractor(found_of(truth, both), mean, count, failed, asked),
    }


def found_of(truth: Sequence[Features], read: Sequence[Features | None]) -> dict[str, Both]:
    """Precision and recall of each field over messages; one that couldn't be `read` has nothing found."""
    pairs = [(known, found or NOTHING) for known, found in zip(truth, read, strict=True)]
    return {
        name: precision_recall(*zip(*((getattr(t, name), getattr(f, name)) for t, f in pairs), strict=True))
        for name in FIELDS
    }


def precision_recall(truth: Sequence[Any], found: Sequence[Any]) -> Both:
    """Of a field that may be absent (none, 0, False): a value counts as found only if it is the right one."""
    absent = ("none", 0, False)
    right = sum(t == f and t not in absent for t, f in zip(truth, found, strict=True))
    said, there = (sum(value not in absent for value in side) for side in (found, truth))
    return right / said if said else None, right / there if there else None
