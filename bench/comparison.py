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

    `shown` says in a table what `form` and `middle` don't; `marks` tell, by place and arm, of runs that are
    not among the values ("2 diverged"), and such an arm isn't compared there; `mark` names the crosses that
    stand for them in a plot.
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
        mark = self.marked(place, arm)
        if mark and not values:
            return mark
        said = self.shown(values) if self.shown else spread(values, self.form, middle=self.middle)
        return f"{said}, {mark}" if mark else said

    def marked(self, place: str, arm: str) -> str:
        """What is noted of the arm there; "" for nothing."""
        return self.marks.get(place, {}).get(arm, "")

    def gap(self, one: Sequence[float], other: Sequence[float]) -> str:
        """How far apart two arms' means are, and whether that is more than the seeds make."""
        form = "{:+z" + self.form.removeprefix("{:").lstrip("+z")
        return f"{form.format(statistics.fmean(one) - statistics.fmean(other))} ({judged(one, other)})"

    def gaps(self, place: str, control: str) -> dict[str, str]:
        """By arm, how it differs from the control there; of one that is marked, what is noted."""
        values, found = self.rows.get(place, {}), {}
        other = [] if self.marked(place, control) else values.get(control)
        for arm, of in values.items():
            if mark := self.marked(place, arm):
                found[arm] = mark
            elif arm != control and of and other:
                found[arm] = self.gap(of, other)
        return found

    def pairs(self, control: str) -> dict[str, list[tuple[Sequence[float], Sequence[float]]]]:
        """By arm, its values beside the control's at each place where both have seeds and none is marked."""
        found: dict[str, list[tuple[Sequence[float], Sequence[float]]]] = {}
        for place, values in self.rows.items():
            other = [] if self.marked(place, control) else values.get(control, ())
            for arm, of in values.items():
                if arm != control and not self.marked(place, arm) and min(len(of), len(other)) > 1:
                    found.setdefault(arm, []).append((of, other))
        return found

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
        if any(values.values()) or any(measure.marked(place, arm) for arm in values)
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


def verdict(measures: Sequence[Measure], control: str) -> str:
    """A sentence: how many of the arms' differences from the control the seeds don't make, and of which arms
    they are; "" before there are seeds."""
    found: dict[str, list[bool]] = {}
    for measure in measures:
        for arm, pairs in measure.pairs(control).items():
            found.setdefault(arm, []).extend(apart(*pair) for pair in pairs)
    if not found:
        return ""
    differ = {arm: f"{arm} {sum(of)} of {len(of)}" for arm, of in found.items()}
    one_each = all(len(of) == 1 for of in found.values())
    by_arm = "" if one_each or len(found) == 1 else f": {', '.join(differ.values())}"
    every = [each for of in found.values() for each in of]
    count = f"{sum(every)} of {len(every)} differences from {control}"
    return f"**Beyond the spread of the seeds are {count}{by_arm}.**"


def across(measure: Measure) -> str:
    """A sentence: how each arm differs at the last place from itself at the first; "" without both."""
    if not measure.rows:
        return ""
    (first, before), (last, after) = (list(measure.rows.items())[at] for at in (0, -1))
    gaps = {
        arm: measure.marked(first, arm) or measure.marked(last, arm) or measure.gap(after[arm], of)
        for arm, of in before.items()
        if of and (after.get(arm) or measure.marked(last, arm))
    }
    return f"- {measure.name}, {measure.x} {last} against {first}: {_listed(gaps)}." if gaps else ""


def _listed(gaps: Mapping[str, str]) -> str:
    return "; ".join(f"{arm} {gap}" for arm, gap in gaps.items())


def in_short(measures: Sequence[Measure], control: str, what: str) -> str:
    """For each measure a sentence: at how many places each arm differs from the control by more than the
    seeds do, and by how much; "" before there are seeds. `what` has it: "a trained model's"."""
    told = {measure.name: _counted(measure, control) for measure in measures}
    said = [f"{what} {name} differs from {control}'s {counts}." for name, counts in told.items() if counts]
    if not said:
        return ""
    first, *others = said
    others = [f" {each[0].upper()}{each[1:]}" for each in others]
    return f"**In short: where the ranges over the seeds don't overlap, {first}{''.join(others)}**"


def _counted(measure: Measure, control: str) -> str:
    form, said = "{:+z" + measure.form.removeprefix("{:").lstrip("+z"), []
    for arm, pairs in measure.pairs(control).items():
        gaps = [statistics.fmean(one) - statistics.fmean(other) for one, other in pairs if apart(one, other)]
        ends = dict.fromkeys(form.format(gap) for gap in (min(gaps), max(gaps))) if gaps else ()
        by = f"by {' to '.join(ends)} " if gaps else ""
        said.append(f"with {arm} {by}on {len(gaps)} of {len(pairs)} {measure.x}s")
    return ", ".join(said)


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
        sentences = [verdict(compared, control), "\n".join(filter(None, said))]
        return cls([table_of(measures, arms), *sentences, *lacking], title, panels)

    @property
    def text(self) -> str:
        """The paragraphs."""
        return "\n\n".join(filter(None, self.said)) or NOT_MEASURED

    @property
    def drawn(self) -> Sequence[Panel]:
        """The panels that there are values for."""
        return [panel for panel in self.panels if panel.measure.there]
