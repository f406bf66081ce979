"""How a model orders the held-out pairs, before and after: by what it thinks of both answers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import torch
from tqdm import tqdm

from train.batches import collate
from train.examples import Encoded
from train.model import Adapted

PAIRS = 512  # of a split that are looked at, from its beginning


@torch.no_grad()
def margins(adapted: Adapted, rows: Sequence[Encoded], device: torch.device) -> list[float]:
    """By how much each pair's chosen answer is more probable than its rejected one, in nats."""
    adapted.eval()

    def loss(row: Encoded) -> float:
        return float(adapted(collate([row]).to(device)))

    pairs = [(row, row.rejected) for row in rows[:PAIRS] if row.rejected]
    bar = tqdm(pairs, "Comparing", leave=False, delay=2)
    return [loss(rejected) - loss(chosen) for chosen, rejected in bar]


def preference_scores(now: Sequence[float], before: Sequence[float], beta: float) -> dict[str, float]:
    """Figures of the pairs' margins as they are `now`; `before` the training, empty if it is to come.

    `preferred` is the share of pairs whose chosen answer is the more probable one (Chen et al. 2024, arXiv
    2405.19534, call it ranking accuracy), `margin` the mean in nats. The rewards are DPO's own: beta times
    what the margin grew by.
    """
    if not now:
        return {}
    figures = {"preferred": _share(now), "margin": mean(now)}
    if before:
        grown = [margin - start for margin, start in zip(now, before, strict=True)]
        figures |= {"reward_accuracy": _share(grown), "reward_margin": beta * mean(grown)}
    return figures


def _share(margins: Sequence[float]) -> float:
    return mean(float(margin > 0) for margin in margins)
