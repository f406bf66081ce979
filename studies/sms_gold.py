"""A gold set of marketing messages whose features are known, as each is put together of parts with labels.

Nothing of it is real. Half of the parts, in `studies/data/sms_parts.json`, are hard on purpose: numbers in
words, "buy one get one", three languages in a message, addresses in disguise, and what only looks like a
discount, a deadline, a name or an opt-out. They were written before the rules of `chat/sms_rules.py` were
first run on them.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from core.sms import Features

PARTS = Path(__file__).with_name("data") / "sms_parts.json"
FLAGS = ("deadline", "link", "call_to_action", "personal", "emoji", "opt_out")
NONE: dict[str, Any] = {"discount": "none", "size": 0, "currency": "none", **dict.fromkeys(FLAGS, False)}
BRANDS = ("Lumovi", "Fernwaye", "Oakrill", "Brisvale", "Nordim")


def gold(count: int, seed: int) -> list[tuple[str, Features]]:
    """Make `count` different messages, in each part easy or hard by a coin; the same for the same seed."""
    slots = json.loads(PARTS.read_text(encoding="utf-8"))
    draw = random.Random(seed)
    made: dict[str, Features] = {}
    while len(made) < count:
        chosen = [draw.choice(slot["hard" if draw.random() < 0.5 else "easy"]) for slot in slots.values()]
        text = " ".join(filter(None, [f"{draw.choice(BRANDS)}:", *(part for part, _ in chosen)]))
        truth = NONE.copy()
        for _, labels in chosen:
            truth |= labels
        made[text] = Features(**truth)
    return list(made.items())
