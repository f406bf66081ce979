"""The study's plots, from results.json alone: arms in fixed colours, bars from lowest seed to highest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.comparison import given
from bench.comparison_plots import bars, figure, legend_below, save
from studies.quantised_cells import (
    ARM_NAMES,
    NEEDS,
    UNLIKE,
    Content,
    at_alpha,
    at_rate,
    by_arm,
    cells,
    largest_norms,
    last_loss,
    mean_by_seed,
    place,
    rates,
    rise,
    written,
)
from studies.quantised_tasks import CHANGES, SCORES

COLOURS = {"gptq": "#d55e00", "nf4": "#0072b2", "int8": "#009e73", "bf16": "#555555"}
LOSS = "loss (nats a token)"


def write_plots(content: Content, folder: Path, begins: str = "") -> list[str]:
    """Draw what there are cells for into `folder`, as `<begins><name>.png`; return the names."""
    drawers = {
        "tasks": draw_tasks,
        "alpha": draw_alpha,
        "stability": draw_stability,
        "speed": draw_speed,
        "robustness": draw_robustness,
        "forgetting": draw_forgetting,
    }
    needs = NEEDS | {"tasks": ("task",)}  # what is only asked untuned is in the table
    drawn = {
        name: draw(content)
        for name, draw in drawers.items()
        if any(cells(content, kind) for kind in needs[name])
    }
    save(drawn, folder, begins)
    return list(drawn)


def _bars(
    axes: Any, at: Sequence[float], values: Sequence[Sequence[float]], arm: str, form: str, **drawn: Any
) -> None:
    """The arm's, in its colour."""
    bars(axes, at, values, fmt=form, color=COLOURS[arm], label=ARM_NAMES[arm], **drawn)


def _places(count: int, number: int) -> list[float]:
    """Beside each other for arm `number`, around 0, 1, 2...: for dots that no line joins."""
    return [place + (number - 1.5) * 0.18 for place in range(count)]


def draw_tasks(content: Content) -> Figure:
    """Loss and score of each task, untuned (hollow) and tuned."""
    tasks = content["settings"]["tasks"]
    made, axes = figure(2, "Tasks: tuned (dots, bars over seeds) and untuned (hollow)")
    for each, name in zip(axes, ("loss", "score"), strict=True):
        for number, arm in enumerate(ARM_NAMES):
            at = _places(len(tasks), number)
            before = [
                content["cells"].get(f"untuned|{arm}", {}).get("tasks", {}).get(task, {}).get(name)
                for task in tasks
            ]
            each.plot(
                at, [float("nan") if b is None else b for b in before], "o", mfc="none", color=COLOURS[arm]
            )
            runs = [by_arm(content, "task", task).get(arm, []) for task in tasks]
            _bars(each, at, [given(run.get(name) for run in of) for of in runs], arm, "o")
        labels = tasks if name == "loss" else [f"{task}\n{SCORES[task]}" for task in tasks]
        each.set_xticks(range(len(tasks)), labels, fontsize="small")
        each.set_ylabel(LOSS + ", lower is better" if name == "loss" else "score (0 to 1), higher is better")
    legend_below(made, axes)
    return made


def draw_alpha(content: Content) -> Figure:
    """Loss at the end over alpha, with a fixed and with a compensated rate."""
    alphas, crosses = content["settings"]["alphas"], False
    made, axes = figure(2, f"lora_alpha at r {content['settings']['sizes']['rank']}")
    at = range(len(alphas))
    for each, mode in zip(axes, ("fixed", "compensated"), strict=True):
        for arm in ARM_NAMES:
            runs = [at_alpha(content, mode, alpha, arm) for alpha in alphas]
            values = [given(last_loss(run) for run in of) for of in runs]
            _bars(each, at, values, arm, "o-")
            lost = [
                (x, max(v))
                for x, v, of in zip(at, values, runs, strict=True)
                if v and any(run["diverged"] for run in of)
            ]
            if lost:
                crosses = True
                each.plot(*zip(*lost, strict=True), "x", color=COLOURS[arm], ms=11, mew=2)
        each.set_xticks(range(len(alphas)), map(str, alphas))
        each.set(xlabel="lora_alpha", ylabel=f"last validation {LOSS}", title=f"{mode} learning rate")
    if crosses:
        made.suptitle(f"{made.get_suptitle()} (crosses: a run diverged)")
    legend_below(made, axes)
    return made


def draw_stability(content: Content) -> Figure:
    """Share of diverged runs, and the largest gradient, over the learning rate."""
    made, axes = figure(2, "Stability by learning rate")
    tried = rates(content)
    for number, arm in enumerate(ARM_NAMES):
        at = _places(len(tried), number)
        runs = [at_rate(content, rate, arm) for rate in tried]
        shares = [[statistics.fmean(run["diverged"] for run in of)] if of else [] for of in runs]
        _bars(axes[0], at, shares, arm, "o")
        _bars(axes[1], at, [largest_norms(of) for of in runs], arm, "o")
    for each in axes:
        each.set_xticks(range(len(tried)), [f"{rate:g}" for rate in tried])
        each.set_xlabel("learning rate")
    axes[0].set(ylabel="share of runs that diverged", ylim=(-0.05, 1.05))
    axes[1].set(ylabel="largest gradient norm of a run", yscale="log")
    legend_below(made, axes)
    return made


def draw_speed(content: Content) -> Figure:
    """Medians of tokens a second over the batch, for each place where it was measured."""
    batches = content["settings"]["batches"]
    places: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for kind, name, cell in written(content):
        places.setdefault(place(content, kind), []).append((kind, name, cell))
    made, axes = figure(len(places), "Writing speed by precision and batch")
    for each, (where, found) in zip(axes, places.items(), strict=True):
        for number, (kind, name, cell) in enumerate(found):
            speeds = [cell["batches"][str(batch)]["tokens_per_s"] for batch in batches]
            if kind == "gguf":
                drawn: dict[str, Any] = {"color": f"C{number}", "label": f"llama.cpp {name}"}
                bars(each, batches, speeds, middle=statistics.median, fmt="s--", **drawn)
            else:
                _bars(each, batches, speeds, name, "o-", middle=statistics.median)
        each.set(xlabel="chats at once", ylabel="tokens a second, all together", xscale="log", yscale="log")
        each.set_title(where, fontsize="medium")
        each.set_xticks(batches, map(str, batches))
        each.minorticks_off()
    legend_below(made, axes)
    return made


def draw_robustness(content: Content) -> Figure:
    """The rise of the loss under each change."""
    made, axes = figure(1, "What a changed prompt costs a tuned model")
    changes, tasks = (*CHANGES, "other domain"), content["settings"]["tasks"]
    for number, arm in enumerate(ARM_NAMES):
        values = [mean_by_seed(content, arm, partial(rise, change=change), tasks) for change in changes]
        _bars(axes[0], _places(len(changes), number), values, arm, "o")
    axes[0].set_xticks(range(len(changes)), changes, fontsize="small", rotation=20)
    axes[0].set_ylabel("rise of the loss (nats a token)")
    axes[0].axhline(0, color="black", lw=0.8)
    legend_below(made, axes)
    return made


def draw_forgetting(content: Content) -> Figure:
    """Loss on other text by epoch: of the first task that was trained."""
    task = next(task for task in content["settings"]["tasks"] if cells(content, "task", task))
    made, axes = figure(3, f"Other text while {task} are learnt")
    for each, kind in zip(axes, UNLIKE, strict=True):
        for arm, runs in by_arm(content, "task", task).items():
            epochs = range(max(len(run["evals"]) for run in runs))
            values = [
                given(run["evals"][epoch].get(kind) for run in runs if epoch < len(run["evals"]))
                for epoch in epochs
            ]
            _bars(each, list(epochs), values, arm, "o-")
        each.set(xlabel="epoch", ylabel=LOSS, title=kind)
        each.xaxis.get_major_locator().set_params(integer=True)
    legend_below(made, axes)
    return made
