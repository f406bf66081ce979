"""Measures (bench/comparison.py) read off the cells of a study: by place and arm, a run for each seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.comparison import SEEDS, Measure, given

Places = Mapping[str, Mapping[str, Sequence[Any]]]  # by place and arm, the runs
# Of a run: where it is in it, as "evals.-1.loss" or "grad_norms.max", where {} stands for the place; or a
# function that finds it
Figure = str | Callable[[Any], float | None]


def by_arm(
    cells: Mapping[str, Any], begins: str, arms: Mapping[str, str], seeds: Iterable[int] = SEEDS
) -> dict[str, list[Any]]:
    """The cells `begins`|arm or `begins`|arm|seed of each arm; `arms` has by name what it is in keys."""
    ends = {name: [arm, *(f"{arm}|{seed}" for seed in seeds)] for name, arm in arms.items()}
    return {
        name: [cells[key] for end in of if (key := f"{begins}|{end}") in cells] for name, of in ends.items()
    }


def by_seed(
    cells: Mapping[str, Any], begins: Sequence[str], arms: Mapping[str, str], having: str
) -> dict[str, list[list[Any]]]:
    """For each arm, a seed's cells `begins`|arm|seed together: what is measured of them is their mean. Cells
    without what is called `having` are left out."""

    def together(arm: str, seed: int) -> list[Any]:
        found = [cells.get(f"{each}|{arm}|{seed}", {}) for each in begins]
        return [cell for cell in found if having in cell]

    return {name: [of for seed in SEEDS if (of := together(arm, seed))] for name, arm in arms.items()}


def measured(
    name: str, x: str, places: Places, figure: Figure, minus: Figure = "", marked: str = "", **kept: Any
) -> Measure:
    """The measure whose values are `figure` of each run, or how much more it is than `minus`.

    `places` has by place and arm the runs that there are, or lists of runs, of which it is the mean. `marked`
    is the name of what some runs are (diverged): they are left out, and how many is noted.
    """

    def value(run: Any, place: str) -> float | None:
        if isinstance(run, list):
            values = given(value(each, place) for each in run)
            return statistics.fmean(values) if values else None
        found, less = _found(run, figure, place), _found(run, minus, place) if minus else 0
        return None if found is None or less is None else found - less

    there = {place: {arm: runs for arm, runs in arms.items() if runs} for place, arms in places.items()}
    rows = {
        place: {
            arm: given(value(run, place) for run in runs if not (marked and run[marked]))
            for arm, runs in arms.items()
        }
        for place, arms in there.items()
    }
    marks = {
        place: {
            arm: f"{count} {marked}"
            for arm, runs in arms.items()
            if marked and (count := sum(run[marked] for run in runs))
        }
        for place, arms in there.items()
    }
    return Measure(name, x, rows, marks=marks, mark=f"a run {marked} (not in the mean)", **kept)


def _found(run: Any, figure: Figure, place: str) -> float | None:
    """The figure of a run: by a function, or by the names (and numbers, in a list) that lead to it."""
    if callable(figure):
        return figure(run)
    for step in figure.split("."):
        name = place if step == "{}" else step
        if name == "max":
            run = max(given(run or ()), default=None)
        elif isinstance(run, list):
            run = run[int(name)] if -len(run) <= int(name) < len(run) else None
        else:
            run = run.get(name) if run else None
    found: float | None = run
    return found
