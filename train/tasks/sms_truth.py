"""Likelihoods of generated messages judged by their truth, which is known; and what baselines find of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from core.sms import BASELINES
from train.tasks.sms import expected_figures, figures, reached
from train.tasks.sms_baselines import baselines
from train.tasks.sms_generator import Row

TRUTH = "the generator's truth"
MEAN_RATE = BASELINES["mean_rate"]
TEST_SHARE = 0.2  # of the campaigns


def split(found: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and to test on, in a random order; a campaign or a text is on one side only."""
    draw = random.Random(seed)
    campaigns = sorted({row.campaign for row in found})
    held_out = set(draw.sample(campaigns, max(1, round(TEST_SHARE * len(campaigns)))))
    mixed = draw.sample(found, len(found))
    train = [row for row in mixed if row.campaign not in held_out]
    known = {row.message for row in train}
    return train, [row for row in mixed if row.campaign in held_out and row.message not in known]


def scores(tests: Sequence[Row], likely: Sequence[float]) -> dict[str, float]:
    """Figures against what happened, and what they would be over many draws of what happens."""
    bounded = [min(max(p, 1e-6), 1 - 1e-6) for p in likely]
    expected = expected_figures([row.probability for row in tests], likely)
    return figures([row.converted for row in tests], bounded) | expected


def judged(tests: Sequence[Row], likely: Sequence[float]) -> dict[str, Any]:
    """The likelihoods beside what happened, and their scores."""
    told = {"likely": list(likely), "converted": [row.converted for row in tests]}
    return told | scores(tests, likely)


def of_baselines(tests: Sequence[Row], *trained: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The scores of each baseline after it saw such rows, as "TF-IDF, 1500 rows"; and those of the truth."""
    made = {}
    for known in trained:
        messages, sold = [row.message for row in known], [row.converted for row in known]
        for name, likely in baselines(messages, sold, [row.message for row in tests]).items():
            made[f"{BASELINES[name]}, {len(known)} rows"] = scores(tests, likely)
    return made | {TRUTH: scores(tests, [row.probability for row in tests])}


def share_reached(of: Mapping[str, float], beside: Mapping[str, Mapping[str, float]]) -> float | None:
    """How much of what can be known is found, `beside` the truth (1) and the last of the mean rates (0)."""
    losses = {name: found["expected_log_loss"] for name, found in beside.items()}
    rates = [loss for name, loss in losses.items() if name.startswith(MEAN_RATE)]
    return reached(of["expected_log_loss"], rates[-1], losses[TRUTH]) if rates else None
