"""What a sweep measured: a table with the spread over the seeds, and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from core.files import whole, write_whole
from train.card import table
from train.sweep_grid import Cell, Sweep, scale

Row = dict[str, Any]
TABLE, PLOT = "table.md", "plot.png"
LOG_FROM = 8  # times from the smallest value to the largest: there the axis is logarithmic


class Group:
    """The runs of one cell of the grid in one arm: they differ in their seeds."""

    def __init__(self, members: Sequence[tuple[Cell, Row]]) -> None:
        self.cell, self.rows = members[0][0], [row for _, row in members]

    def spread(self, name: str) -> tuple[float, float] | None:
        """Mean and sample standard deviation over the seeds that have a figure; None without any."""
        found = [row[name] for row in self.rows if row.get(name) is not None]
        if not found:
            return None
        return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0

    @property
    def diverged(self) -> int:
        return sum(bool(row["diverged"]) for row in self.rows)


def groups_of(todo: Sequence[Cell], rows: Sequence[Row]) -> list[Group]:
    """The rows by arm and values; `todo` and `rows` belong together one by one."""

    def by_cell(member: tuple[Cell, Row]) -> tuple[str, str]:
        return member[0].arm, json.dumps(member[0].values)

    return [Group(list(members)) for _, members in groupby(zip(todo, rows, strict=True), by_cell)]


def write_results(sweep: Sweep, todo: Sequence[Cell], rows: Sequence[Row], folder: Path) -> str:
    """Write table.md and plot.png; return the table."""
    groups = groups_of(todo, rows)
    text = _table(sweep, groups)
    starts = sorted({row["start_eval_loss"] for row in rows if row.get("start_eval_loss") is not None})
    before = f"Before training: {_range(starts)}. " if starts else ""
    note = (
        f"{before}Validation losses in nats a token: mean ± sample standard deviation over "
        f"{len(sweep.seeds)} seeds ({', '.join(map(str, sweep.seeds))}), recipe `{Path(sweep.recipe).stem}`. "
        "Differences within the spread mean nothing."
    )
    write_whole(folder / TABLE, f"# {sweep.name}\n\n{text}\n\n{note}\n")
    figure = plot(sweep, groups, starts)
    with whole(folder / PLOT) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return f"{text}\n{note}\n{folder / TABLE} and {PLOT} are written."


def _table(sweep: Sweep, groups: Sequence[Group]) -> str:
    names = [key.rpartition(".")[2] for key in sweep.grid]
    head = ["arm", *names, "scale", "learning rate", "best loss", "last loss", "largest gradient", "diverged"]
    lines = []
    for group in groups:
        recipe = group.cell.recipe
        lines.append(
            [
                group.cell.arm,
                *map(str, group.cell.values.values()),
                f"{scale(recipe.lora):g}",
                f"{recipe.args.learning_rate:.3g}",
                _cell(group.spread("best_eval_loss"), "{:.3f}"),
                _cell(group.spread("last_eval_loss"), "{:.3f}"),
                _cell(group.spread("grad_norm_max"), "{:.3g}"),
                f"{group.diverged} of {len(group.rows)}" if group.diverged else "no",
            ]
        )
    return table(head, lines)


def _cell(spread: tuple[float, float] | None, form: str) -> str:
    return "none" if spread is None else f"{form.format(spread[0])} ± {form.format(spread[1])}"


def _range(losses: Sequence[float]) -> str:
    low, high = f"{losses[0]:.3f}", f"{losses[-1]:.3f}"
    return low if low == high else f"{low} to {high}"


def plot(sweep: Sweep, groups: Sequence[Group], starts: Sequence[float]) -> Figure:
    """Best loss over the first key that has several values; a line an arm and setting of the other keys."""
    key = next((key for key, values in sweep.grid.items() if len(values) > 1), next(iter(sweep.grid)))
    values = sweep.grid[key]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = {json.dumps(v): v if numbers else place for place, v in enumerate(values)}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    for number, (label, line) in enumerate(_lines(groups, key).items()):
        drawn = [(places[json.dumps(g.cell.values[key])], g, g.spread("best_eval_loss")) for g in line]
        points = sorted((x, *spread, g.diverged) for x, g, spread in drawn if spread)
        if not points:
            continue
        x, means, errors, diverged = zip(*points, strict=True)
        axes.errorbar(x, means, errors, fmt="o-", color=f"C{number}", label=label, capsize=3)
        crossed = [(at, mean) for at, mean, lost in zip(x, means, diverged, strict=True) if lost]
        if crossed:
            axes.plot(*zip(*crossed, strict=True), "x", color=f"C{number}", ms=12, mew=2)
    if starts:
        axes.axhline(starts[0], color="grey", ls="--", lw=1, label="before training")
    if any(group.diverged for group in groups):
        axes.plot([], [], "x", color="black", ms=9, mew=2, ls="", label="a run diverged later")
    if numbers and min(values) > 0 and max(values) >= LOG_FROM * min(values):
        axes.set_xscale("log")
    axes.set_xticks([places[json.dumps(value)] for value in values], [str(value) for value in values])
    axes.minorticks_off()
    axes.set(xlabel=key.rpartition(".")[2], ylabel="best validation loss (nats a token)", title=sweep.name)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _lines(groups: Sequence[Group], key: str) -> dict[str, list[Group]]:
    lines: dict[str, list[Group]] = {}
    for group in groups:
        others = [f"{k.rpartition('.')[2]} {v}" for k, v in group.cell.values.items() if k != key]
        lines.setdefault(", ".join([f"learning rate {group.cell.arm}", *others]), []).append(group)
    return lines
