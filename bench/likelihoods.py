"""Arms that say how likely something is, side by side: figures, the share of the truth, and calibration.

A run is what train/tasks/sms_truth.py has of it (`judged`, or `scores` where the likelihoods weren't kept),
its `seed`, how much of what can be known it `reached`, and of a tuned one what bench/tuned.py told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from bench.comparison import SEEDS, Arms, Measure, Section, given, table_by_arm, verdict
from bench.comparison_plots import draw_by_arm
from train.tasks.sms_calibration import calibration_bins, draw_calibration

Run = Mapping[str, Any]
Runs = Mapping[str, Sequence[Run]]  # by arm, one a seed

FIGURES = ("auc", "log_loss", "brier", "calibration_error", "expected_log_loss", "expected_brier")
AXIS = "share reached: 0 is the mean rate, 1 the generator's truth; bars: lowest to highest seed"


def read(name: str, runs: Runs, figure: Callable[[Run], float | None], form: str = "{:.3f}") -> Measure:
    """A figure of runs that have it."""
    return Measure(name, "", {"": {arm: given(map(figure, of)) for arm, of in runs.items() if of}}, form)


def measures(runs: Runs) -> list[Measure]:
    """All figures, `reached` first. Speed and memory are the first seed's, which was alone."""
    tuned = {arm: [run for run in of if "loss" in run] for arm, of in runs.items()}
    alone = {arm: [run for run in of if run["seed"] == SEEDS[0]] for arm, of in tuned.items()}
    return [
        read("reached", runs, lambda run: run["reached"], "{:z.2f}"),
        *(read(name.replace("_", " "), runs, partial(_of, name)) for name in FIGURES),
        read("last logged training loss, nats a token", tuned, lambda run: run["loss"][-1]),
        read("tokens/s", alone, lambda run: run["tokens_per_s"], "{:,.0f}"),
        read("memory, GB", alone, lambda run: run["memory_gb"], "{:.2f}"),
    ]


def _of(name: str, run: Run) -> float | None:
    return run.get(name)


def section(runs: Runs, told: Sequence[str], control: str) -> Section:
    """The table of all arms; and how far the control is from those that are `told` of."""
    share, *others = measures(runs)
    seeds = Measure("seeds", "", {"": {arm: [len(of)] for arm, of in runs.items()}}, "{:.0f}")
    few = Measure(share.name, "", {"": {arm: share.rows[""][arm] for arm in told}}, share.form)
    said = [f"- {arm} reaches {gap} against {control}." for arm, gap in few.gaps("", control).items()]
    return Section([table_by_arm([seeds, share, *others], runs), verdict([few], control), "\n".join(said)])


def edge(tried: Mapping[float, float]) -> str:
    """Which end of the learning rates that were tried, by their losses, the best one is; "" for none."""
    rates, best = sorted(tried), min(tried, key=tried.__getitem__, default=0.0)
    ends = {rates[0]: "lowest", rates[-1]: "highest"} if len(rates) > 1 else {}
    return ends.get(best, "")


def pooled(runs: Runs, arms: Sequence[str]) -> dict[str, tuple[list[int], list[float]]]:
    """What happened and what was said, all seeds together, of those arms whose likelihoods were kept."""
    return {
        arm: (
            [value for run in runs[arm] for value in run["converted"]],
            [value for run in runs[arm] for value in run["likely"]],
        )
        for arm in arms
        if all("likely" in run for run in runs[arm])
    }


def plots(runs: Runs, told: Sequence[str], drawn: Arms) -> dict[str, Figure]:
    """How much of the truth each arm reached, and the calibration of those that are `told` of."""
    if not runs:
        return {}
    title = "How much of what can be known about a purchase is found (synthetic)"
    share = read(AXIS, runs, lambda run: run["reached"])
    made = {"reached": draw_by_arm(title, share, drawn, lines={0: "-", 1: "--"})}
    if bins := {arm: calibration_bins(*of) for arm, of in pooled(runs, told).items()}:
        colours = {arm: drawn[arm]["color"] for arm in bins}
        made["calibration"] = draw_calibration(bins, colours, "Calibration (synthetic)")
    return made
