"""The study's cells as figures by arm, and what can be said of a difference between two arms."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.comparison import SEEDS, given, judged

Content = Mapping[str, Any]  # of results.json
Figure = Callable[[Mapping[str, Any]], float | None]  # of a cell
ARM_NAMES = {"gptq": "GPTQ", "nf4": "NF4", "int8": "int8", "bf16": "bf16"}
CONTROL = "bf16"
UNLIKE = ("code", "licence", "manual")  # the kinds of text that are like none of the tasks
WRITTEN = ("speed", "processor", "gguf")  # cells of how fast the base writes
NEEDS = {  # a section and its plot: which cells they are of
    "tasks": ("untuned", "task"),
    "alpha": ("alpha",),
    "stability": ("rate",),
    "speed": WRITTEN,
    "robustness": ("task",),
    "forgetting": ("task",),
}


def cells(content: Content, *parts: str) -> list[dict[str, Any]]:
    """The cells whose keys begin with these parts, in the order of their keys."""
    begins = "|".join(parts)
    found: dict[str, dict[str, Any]] = content["cells"]
    return [found[key] for key in sorted(found) if key == begins or key.startswith(begins + "|")]


def by_arm(content: Content, *parts: str) -> dict[str, list[dict[str, Any]]]:
    """The cells of each arm under `parts`, one a seed; arms without cells are left out."""
    found = {arm: cells(content, *parts, arm) for arm in ARM_NAMES}
    return {arm: rows for arm, rows in found.items() if rows}


def at_rate(content: Content, rate: float, arm: str) -> list[dict[str, Any]]:
    """The runs of an arm at a learning rate."""
    if rate == content["settings"]["sizes"]["rate"]:
        return _usual(content, arm)
    return cells(content, "rate", f"{rate:g}", arm)


def at_alpha(content: Content, mode: str, alpha: int, arm: str) -> list[dict[str, Any]]:
    """The runs of an arm at an alpha; at the usual one both modes' rates are the same."""
    if alpha == content["settings"]["sizes"]["alpha"]:
        return _usual(content, arm)
    return cells(content, "alpha", mode, str(alpha), arm)


def _usual(content: Content, arm: str) -> list[dict[str, Any]]:
    """The runs of an arm at the usual rate and alpha, of the seeds that the other rates have."""
    keys = [f"task|quotes|{arm}|{seed}" for seed in content["settings"]["seeds"]]
    return [content["cells"][key] for key in keys if key in content["cells"]]


def rates(content: Content) -> list[float]:
    """All learning rates that are tried, the usual one among them."""
    settings = content["settings"]
    return sorted({*settings["rates"], settings["sizes"]["rate"]})


def largest_norms(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """The largest gradient norm of each run that has one."""
    return given(max(given(run["grad_norms"]), default=None) for run in runs)


def written(content: Content) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind, arm or type, and cell of all that tells how fast the base writes."""
    for kind in WRITTEN:
        for key, cell in content["cells"].items():
            if key.startswith(f"{kind}|"):
                yield kind, key.partition("|")[2], cell


def place(content: Content, kind: str) -> str:
    """Where the cells of a kind were measured: speed, processor or gguf."""
    device = str(content["settings"]["device"])
    if kind == "speed" and device != "CPU":
        return device
    about = content["cells"].get("about processor", content["cells"]["about"])
    return f"processor ({about['cores']} cores)"


def last_loss(cell: Mapping[str, Any]) -> float | None:
    """The validation loss at the end of a run, in nats a token."""
    loss: float | None = cell["evals"][-1]["loss"] if cell["evals"] else None
    return loss


def verdict(figures: Mapping[str, Sequence[float]], form: str = "{:+z.3f}") -> str:
    """How far each arm's mean is from the control's, and whether that is more than the seeds make."""
    control, said = figures.get(CONTROL, ()), []
    for arm, values in figures.items():
        if arm == CONTROL or not values or not control:
            continue
        apart = form.format(statistics.fmean(values) - statistics.fmean(control))
        said.append(f"{ARM_NAMES[arm]} {apart} ({judged(values, control)})")
    return f"Against {ARM_NAMES[CONTROL]}: {'; '.join(said)}." if said else "There is nothing to compare yet."


def rise(cell: Mapping[str, Any], change: str) -> float | None:
    """How much the loss on the test rows rises when their prompts are changed."""
    after, before = cell["changed"].get(change, {}).get("loss"), cell["loss"]
    return None if after is None or before is None else after - before


def forgotten(cell: Mapping[str, Any], kind: str) -> float | None:
    """How much the loss on a kind of other text rose from before the training to its end."""
    first, last = cell["evals"][0].get(kind), cell["evals"][-1].get(kind)
    return None if first is None or last is None else last - first


def mean_by_seed(content: Content, arm: str, figure: Figure, tasks: Sequence[str]) -> list[float]:
    """For each seed the mean of `figure(cell)` over the tasks that have it."""
    found = []
    for seed in SEEDS:
        runs = [content["cells"].get(f"task|{task}|{arm}|{seed}") for task in tasks]
        values = given(figure(run) for run in runs if run and "loss" in run)
        if values:
            found.append(statistics.fmean(values))
    return found
