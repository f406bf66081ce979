"""What the studies' plots share: their form, and bars from the lowest value to the highest."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from core.files import write_whole


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
