"""Arms side by side: what several seeds tell of a figure and of a difference, tables, and plots with bars."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from core.files import write_whole
from train.card import table

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


def section(head: Sequence[str], rows: Sequence[Sequence[str]], said: Iterable[str] = ()) -> str:
    """A table, and sentences about it."""
    return "\n\n".join(filter(None, [table(list(head), [list(row) for row in rows]), "\n".join(said)]))


def training_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Memory and speed of training by arm, as `bench/full_size.py` measures them."""
    rows = [
        [
            name,
            cell["pace"],
            f"{cell['tokens_a_batch']:,}",
            f"{cell['training_tokens_per_s']:,.0f}",
            f"{cell['training_memory_gb']:.2f}",
            f"{cell['trainable']:,}",
        ]
        for name, cell in found.items()
    ]
    head = [
        "base",
        "memory",
        "tokens a batch",
        "tokens/s of training",
        "GB at the peak",
        "trained parameters",
    ]
    return table(head, rows)


def figure(columns: int, title: str, size: tuple[float, float] = (4.6, 4)) -> tuple[Figure, Sequence[Any]]:
    """Axes beside each other, of `size` inches each."""
    made = Figure(figsize=(size[0] * columns, size[1]), layout="constrained")
    made.suptitle(title)
    axes = made.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.grid(alpha=0.3)
    return made, axes


def bars(
    axes: Any,
    at: Sequence[float],
    values: Sequence[Sequence[float]],
    sideways: bool = False,
    middle: Callable[[Sequence[float]], float] = statistics.fmean,
    **drawn: Any,
) -> None:
    """Draw the `middle` with bars from the lowest to the highest of `values`, at places that have any.

    `sideways` has the places on the y axis; what else is given goes to errorbar.
    """
    there = [(x, middle(v), min(v), max(v)) for x, v in zip(at, values, strict=True) if v]
    if not there:
        return
    places, centre, low, high = map(list, zip(*there, strict=True))
    below = [max(0.0, m - v) for m, v in zip(centre, low, strict=True)]  # a mean is rounded
    above = [max(0.0, v - m) for m, v in zip(centre, high, strict=True)]
    if sideways:
        axes.errorbar(centre, places, xerr=(below, above), capsize=3, **drawn)
    else:
        axes.errorbar(places, centre, yerr=(below, above), capsize=3, **drawn)


def legend_below(made: Figure, axes: Sequence[Any]) -> None:
    """What is drawn in any of `axes`, each label once, under all of the figure, where it hides nothing."""
    found = {
        label: handle
        for each in axes
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True)
    }
    made.legend(found.values(), found.keys(), frameon=False, loc="outside lower center", ncols=4)


def save(figures: Mapping[str, Figure], folder: Path, begins: str = "") -> None:
    """Write each as `<begins><name>.png`, the same bytes for the same figure."""
    for name, made in figures.items():
        picture = io.BytesIO()
        made.savefig(picture, format="png", dpi=100, metadata={"Software": None})
        write_whole(folder / f"{begins}{name}.png", picture.getvalue())
