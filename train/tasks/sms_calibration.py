"""How given likelihoods came true: in ten bins, as scores of a run have them, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from core.sms import logit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10
FEW = 5  # rows; the share of fewer says little

Bins = dict[int, tuple[float, float, int]]  # mean likelihood, share that happened, rows; by the bin's number


def calibration_bins(truth: Sequence[int], likely: Sequence[float]) -> Bins:
    """Sort rows into 10 equal bins; mean likelihood, observed rate and number of rows of those with any."""
    given, happened = np.asarray(likely), np.asarray(truth)
    places = np.minimum((given * BINS).astype(int), BINS - 1)  # 1.0 belongs to the last
    bins = {}
    for i in range(BINS):
        here = places == i
        if here.any():
            bins[i] = float(given[here].mean()), float(happened[here].mean()), int(here.sum())
    return bins


def scores_of(bins: Bins) -> dict[str, float]:
    """The bins as scores: `bin_<i>_predicted`, `bin_<i>_observed` (shares) and `bin_<i>_rows`."""
    scores: dict[str, float] = {}
    for i, (predicted, observed, rows) in bins.items():
        scores |= {f"bin_{i}_predicted": predicted, f"bin_{i}_observed": observed, f"bin_{i}_rows": rows}
    return scores


def bins_in(scores: Mapping[str, float]) -> Bins:
    """The bins that scores hold; none where they are of something else."""
    names = {i: [f"bin_{i}_{part}" for part in ("predicted", "observed", "rows")] for i in range(BINS)}
    found = {i: [scores[name] for name in parts] for i, parts in names.items() if parts[-1] in scores}
    return {i: (said, was, int(rows)) for i, (said, was, rows) in found.items()}


def calibration(model: str, truth: Sequence[int], likely: Sequence[float]) -> dict[str, Any]:
    """What the chat's page /sms reads of a model: bins, and a line in log-odds (Platt 1999), which is pulled
    a little towards none; empty where all or none happened. The data must be synthetic, as it says so."""
    if len(set(truth)) < 2:
        return {}
    line = LogisticRegression(C=1.0).fit([[logit(p)] for p in likely], truth)
    return {
        "synthetic": True,
        "model": model,
        "rows": len(truth),
        "slope": float(line.coef_[0, 0]),
        "intercept": float(line.intercept_[0]),
        "bins": [list(values) for values in calibration_bins(truth, likely).values()],
    }


def interval(share: float, rows: int) -> tuple[float, float]:
    """Between which shares the true one is, two times in three (Wilson's interval of one standard error)."""
    centre = (share * rows + 0.5) / (rows + 1)
    half = math.sqrt(share * (1 - share) * rows + 0.25) / (rows + 1)
    return max(0.0, centre - half), min(1.0, centre + half)


def draw_calibration(found: Mapping[str, Bins], colours: Mapping[str, str], title: str) -> Figure:
    """Draw what was said and what happened, a line a model, by its name; bins of few rows hollow, apart."""
    from matplotlib.figure import Figure  # takes half a second; draws on Agg without pyplot's global state

    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.plot([0, 1], [0, 1], color="#bbbbbb", ls="--", lw=1, label="as often as said")
    for name, bins in found.items():
        drawn: dict[str, Any] = {"capsize": 3, "ms": 4, "color": colours[name]}
        many = [each for each in bins.values() if each[-1] >= FEW]
        few = [each for each in bins.values() if each[-1] < FEW]
        _draw_bins(axes, many, fmt="o-", label=name, **drawn)
        _draw_bins(axes, few, fmt="o", mfc="white", elinewidth=0.8, **drawn)
    if any(rows < FEW for bins in found.values() for _, _, rows in bins.values()):
        axes.plot([], [], "o", ms=4, color="black", mfc="white", label=f"fewer than {FEW} rows")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="likelihood of a purchase that was given")
    axes.set_ylabel("share that bought; bars: where it is, two times in three")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def _draw_bins(axes: Any, bins: Sequence[tuple[float, float, int]], **drawn: Any) -> None:
    said, was, _ = zip(*bins, strict=True) if bins else ((), (), ())
    ends = [interval(share, rows) for _, share, rows in bins]
    below = [max(0.0, share - low) for share, (low, _) in zip(was, ends, strict=True)]
    above = [max(0.0, high - share) for share, (_, high) in zip(was, ends, strict=True)]
    axes.errorbar(said, was, (below, above), **drawn)
