"""Arms side by side: tables, sentences and plots from the same rows of figures.

A `Measure` is one figure of several arms: at each place (a task, a learning rate; "" if there is but one) it
has for each arm the values of its seeds. Of measures, a section of a page is some lines:

    places = {task: by_arm(cells, f"task|{task}", ARMS) for task in TASKS}
    loss = measured("loss (nats a token)", "task", places, "loss")
    Section.of([loss], [loss], ARMS, "bf16", "Tasks after training", [Panel(loss)])

where ARMS has by an arm's name what it is called in the cells' keys (bench/figures.py reads them). `draw` in
bench/comparison_plots.py makes the plot. With many arms, `table_by_arm` has a line for each of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from train.card import table

SEEDS = (1, 2, 3)  # of what is compared
NOT_MEASURED = "Not measured yet."

Values = Mapping[str, Sequence[float]]  # by arm, those of its seeds
Arms = Mapping[str, Mapping[str, Any]]  # by name, matplotlib's keywords for its points: {"color": "#0072b2"}


def given(values: Iterable[float | None]) -> list[float]:
    """The values that are there: a diverged run may have none."""
    return [value for value in values if value is not None]


def spread(
    values: Sequence[float],
    form: str = "{:.3f}",
    nothing: str = "none",
    middle: Callable[[Sequence[float]], float] = statistics.fmean,
) -> str:
    """Mean (or what `middle` is) and range, as text; `nothing` where there are no values."""
    if not values:
        return nothing
    mean = form.format(middle(values))
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


@dataclass(frozen=True)
class Measure:
    """One figure: by place and arm the values of its seeds. An arm that isn't measured there is left out; one
    without values there was measured and has none.

    `shown` says in a table what `form` and `middle` don't; `marks` are notes beside what is shown, by place
    and arm, and `mark` names in a plot the crosses that stand for them.
    """

    name: str  # with its unit, as tables and axes call it
    x: str  # what the places are
    rows: Mapping[str, Values]
    form: str = "{:.3f}"
    middle: Callable[[Sequence[float]], float] = statistics.fmean
    shown: Callable[[Sequence[float]], str] | None = None
    marks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    mark: str = ""

    def text(self, place: str, arm: str) -> str:
        """What a table has there; "" for what isn't measured."""
        values = self.rows.get(place, {}).get(arm)
        if values is None:
            return ""
        said = self.shown(values) if self.shown else spread(values, self.form, middle=self.middle)
        mark = self.marks.get(place, {}).get(arm)
        return f"{said}, {mark}" if mark else said

    def gap(self, one: Sequence[float], other: Sequence[float]) -> str:
        """How far apart two arms' means are, and whether that is more than the seeds make."""
        form = "{:+z" + self.form.removeprefix("{:").lstrip("+z")
        return f"{form.format(statistics.fmean(one) - statistics.fmean(other))} ({judged(one, other)})"

    def gaps(self, place: str, control: str) -> dict[str, str]:
        """By arm, how it differs from the control there."""
        values = self.rows.get(place, {})
        other = values.get(control)
        return {arm: self.gap(of, other) for arm, of in values.items() if arm != control and of and other}

    @property
    def there(self) -> bool:
        """Whether there is any value."""
        return any(values for arms in self.rows.values() for values in arms.values())

    def lacking(self, arms: Iterable[str], where: str = "") -> str:
        """Which arms aren't measured at any place, where others are."""
        there = {arm for values in self.rows.values() for arm in values}
        missing = ", ".join(arm for arm in arms if arm not in there)
        return f"Not measured yet{where}: {missing}." if there and missing else ""


def share(values: Sequence[float]) -> str:
    """How many of them are so, of those that are so (1) or not (0): shown in a table in place of the mean."""
    return f"{sum(values):g} of {len(values)}"


def total(values: Sequence[float]) -> str:
    """Their sum, shown in a table in place of the mean."""
    return f"{sum(values):g}"


def table_of(measures: Sequence[Measure], arms: Iterable[str]) -> str:
    """A line for each measure and place, a column for each arm; "" where nothing is measured."""
    columns = list(arms)
    rows = [
        [measure.name, place, *(measure.text(place, arm) for arm in columns)]
        for measure in measures
        for place, values in measure.rows.items()
        if any(values.values())
    ]
    return table(["figure", measures[0].x, *columns], rows)


def table_by_arm(measures: Sequence[Measure], arms: Iterable[str], place: str = "") -> str:
    """A line for each arm, a column for each measure."""
    rows = [[arm, *(measure.text(place, arm) for measure in measures)] for arm in arms]
    return table(["arm", *(measure.name for measure in measures)], rows)


def against(measure: Measure, control: str) -> str:
    """At each place a sentence: how the arms differ from the control, and whether seeds do as much."""
    found = {place: measure.gaps(place, control) for place in measure.rows}
    return "\n".join(
        f"- {measure.name}{', ' if place else ''}{place}. Against {control}: {_listed(gaps)}."
        for place, gaps in found.items()
        if gaps
    )


def across(measure: Measure) -> str:
    """A sentence: how each arm differs at the last place from itself at the first; "" without both."""
    if not measure.rows:
        return ""
    (first, before), (last, after) = (list(measure.rows.items())[at] for at in (0, -1))
    gaps = {arm: measure.gap(after[arm], of) for arm, of in before.items() if of and after.get(arm)}
    return f"- {measure.name}, {measure.x} {last} against {first}: {_listed(gaps)}." if gaps else ""


def _listed(gaps: Mapping[str, str]) -> str:
    return "; ".join(f"{arm} {gap}" for arm, gap in gaps.items())


def in_short(measure: Measure, control: str, what: str) -> str:
    """A sentence: at how many places each arm differs from the control by more than the seeds do, and by how
    much; "" before there are seeds. It begins with `what` is measured."""
    said = []
    for arm in dict.fromkeys(arm for values in measure.rows.values() for arm in values if arm != control):
        sides = [(values.get(arm, ()), values.get(control, ())) for values in measure.rows.values()]
        pairs = [pair for pair in sides if min(map(len, pair)) > 1]
        gaps = [statistics.fmean(one) - statistics.fmean(other) for one, other in pairs if apart(one, other)]
        range_ = " to ".join(dict.fromkeys(f"{gap:+.3f}" for gap in (min(gaps), max(gaps)))) if gaps else ""
        if pairs:
            by = f"by {range_} " if gaps else ""
            said.append(f"with {arm} {by}on {len(gaps)} of {len(pairs)} {measure.x}s")
    if not said:
        return ""
    return (
        f"**In short: where the ranges over the seeds don't overlap, {what} {measure.name} differs from "
        f"{control}'s {', '.join(said)}.**"
    )


@dataclass(frozen=True)
class Panel:
    """Axes of a plot: a measure over its places, with bars from the lowest to the highest value of an arm."""

    measure: Measure
    before: Measure | None = None  # of what each arm was before, drawn hollow
    joined: bool = False  # the arms' points by lines; otherwise arms are beside each other
    title: str = ""
    log: bool = False  # the y axis
    limits: tuple[float, float] | None = None  # of the y axis
    zero: bool = False  # a line at 0
    ticks: Sequence[str] = ()  # what the places are called, if otherwise than in tables


@dataclass(frozen=True)
class Section:
    """A part of a page: tables and sentences, of which the empty ones are left out, and the plot's panels."""

    said: Sequence[str]
    title: str = ""  # of the plot
    panels: Sequence[Panel] = ()

    @classmethod
    def of(
        cls,
        measures: Sequence[Measure],
        compared: Sequence[Measure],
        arms: Collection[str],
        control: str,
        title: str = "",
        panels: Sequence[Panel] = (),
        ends: bool = False,
    ) -> Section:
        """The table of `measures`, with sentences on those that are `compared` with the control, and on what
        isn't measured of them; `ends` also compares the last place with the first."""
        said = [line for each in compared for line in (against(each, control), across(each) if ends else "")]
        lacking = dict.fromkeys(each.lacking(arms) for each in compared)
        return cls([table_of(measures, arms), "\n".join(filter(None, said)), *lacking], title, panels)

    @property
    def text(self) -> str:
        """The paragraphs."""
        return "\n\n".join(filter(None, self.said)) or NOT_MEASURED

    @property
    def drawn(self) -> Sequence[Panel]:
        """The panels that there are values for."""
        return [panel for panel in self.panels if panel.measure.there]
