"""What several seeds tell of a figure, and of a difference between two arms."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

SEEDS = (1, 2, 3)  # of what is compared


def given(values: Iterable[float | None]) -> list[float]:
    """The values that are there: a diverged run may have none."""
    return [value for value in values if value is not None]


def spread(values: Sequence[float], form: str = "{:.3f}", nothing: str = "none") -> str:
    """Mean and range, as text; `nothing` where there are no values."""
    if not values:
        return nothing
    mean = form.format(statistics.fmean(values))
    low, high = form.format(min(values)), form.format(max(values))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the ranges of two arms don't overlap; never so for a single seed, which has none."""
    return min(len(one), len(other)) > 1 and (min(one) > max(other) or min(other) > max(one))


def judged(one: Sequence[float], other: Sequence[float]) -> str:
    """Whether two arms differ by more than their seeds do."""
    if min(len(one), len(other)) < 2:
        return "one seed, so no spread to judge by"
    return f"{'beyond' if apart(one, other) else 'within'} the spread of the seeds"
