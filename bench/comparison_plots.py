"""The plots of bench/comparison.py: arms in fixed colours, bars from the lowest seed to the highest."""

from __future__ import annotations

import io
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.comparison import Arms, Measure, Panel, Section

TOGETHER = 36  # letters that have room below axes, or beside them
BESIDE = 0.72  # of the room between two places is for the arms there


def drawn(sections: Mapping[str, Section], arms: Arms) -> dict[str, Figure]:
    """The plots of those sections that there is something to draw of."""
    return {name: draw(each.title, each.drawn, arms) for name, each in sections.items() if each.drawn}


def draw(title: str, panels: Sequence[Panel], arms: Arms) -> Figure:
    """Panels beside each other, with one legend below them."""
    made, axes = figure(len(panels), title)
    for each, panel in zip(axes, panels, strict=True):
        _draw_panel(each, panel, arms)
    legend_below(made, axes)
    return made


def _draw_panel(axes: Any, panel: Panel, arms: Arms) -> None:
    measure, places = panel.measure, list(panel.measure.rows)
    there = {arm for values in measure.rows.values() for arm in values}
    shown = [arm for arm in arms if arm in there]
    for number, arm in enumerate(shown):
        aside = (number - (len(shown) - 1) / 2) * BESIDE / len(shown)
        at = [place + (0.0 if panel.joined else aside) for place in range(len(places))]
        values = [measure.rows[place].get(arm, ()) for place in places]
        drawn = {"marker": "o", "linestyle": "-", "label": arm} | dict(arms[arm])
        drawn |= {} if panel.joined else {"linestyle": "none"}
        if panel.before:
            before = [panel.before.rows.get(place, {}).get(arm, ()) for place in places]
            bars(axes, at, before, **drawn | {"mfc": "white", "label": None})
        bars(axes, at, values, middle=measure.middle, **drawn)
        crossed = [x + aside for x, place in enumerate(places) if measure.marked(place, arm)]
        if crossed:  # at the top edge: where runs diverged to would stretch the axis
            over = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 3}
            axes.plot(crossed, [1.0] * len(crossed), "x", color=drawn["color"], ms=8, mew=2, **over)
    if any(each for each in measure.marks.values()):
        axes.plot([], [], "x", color="black", ms=9, mew=2, label=measure.mark)
    for place in range(0, 0 if panel.joined else len(places), 2):  # which arms belong together
        axes.axvspan(place - 0.5, place + 0.5, color="#f1f1f1", lw=0, zorder=0)
    ticks = panel.ticks or places
    leaning = 35 if sum(len(tick.partition("\n")[0]) for tick in ticks) > TOGETHER else 0
    axes.set_xticks(range(len(places)), ticks, fontsize="small", rotation=leaning)
    for label in axes.get_xticklabels() if leaning else ():  # which ends where its tick is
        label.set(ha="right", rotation_mode="anchor")
    axes.set(xlabel=measure.x, ylabel=textwrap.fill(measure.name, TOGETHER))
    axes.set_title(panel.title, fontsize="medium")
    axes.set_yscale("log" if panel.log else "linear")
    if panel.limits:
        axes.set_ylim(panel.limits)
    if panel.zero:
        axes.axhline(0, color="black", lw=0.8)


def draw_by_arm(
    title: str, measure: Measure, arms: Arms, place: str = "", lines: Mapping[float, str] | None = None
) -> Figure:
    """A measure with a line for each arm, for many of them; `lines` are values marked in a linestyle each."""
    values = measure.rows[place]
    shown = [arm for arm in arms if arm in values]
    made, (axes,) = figure(1, title, (9, 1 + 0.25 * len(shown)))
    for at, arm in enumerate(shown):
        bars(axes, [at], [values[arm]], True, measure.middle, **{"fmt": "o"} | dict(arms[arm]))
    for line, style in (lines or {}).items():
        axes.axvline(line, color="#bbbbbb", linewidth=1, linestyle=style)
    axes.set(yticks=range(len(shown)), yticklabels=shown, xlabel=measure.name)
    axes.invert_yaxis()
    return made


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
    found = dict(sorted(found.items(), key=lambda each: isinstance(each[1], Line2D)))  # the arms come first
    made.legend(found.values(), found.keys(), frameon=False, loc="outside lower center", ncols=4)


def png(made: Figure) -> bytes:
    """The same bytes for the same figure."""
    picture = io.BytesIO()
    made.savefig(picture, format="png", dpi=100, metadata={"Software": None})
    return picture.getvalue()
