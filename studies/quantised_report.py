"""The study's report, from results.json alone: the same JSON gives the same page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

from bench.comparison import apart, given, judged, section, spread
from bench.full_size import training_table
from core.files import write_whole
from studies.quantised_cells import (
    ARM_NAMES,
    CONTROL,
    NEEDS,
    UNLIKE,
    Content,
    at_alpha,
    at_rate,
    by_arm,
    cells,
    forgotten,
    largest_norms,
    last_loss,
    mean_by_seed,
    place,
    rates,
    rise,
    verdict,
    written,
)
from studies.quantised_plots import write_plots
from studies.quantised_tasks import CHANGES, SCORES

REPORT = "report.md"
PAGE = Path(__file__).with_name("quantised_page.md")
NOT_MEASURED = "Not measured yet."
QUICK = "**This is the quick look, with so few rows that it shows the way only, whatever the seeds say.**"
NO_GGUF = "llama.cpp wasn't there, so there are no GGUF files in this table."


def write_report(content: Content, folder: Path, page: str = REPORT, pictures: str = "") -> str:
    """Write the page and its plots into `folder`, the plots' names beginning with `pictures`; say where."""
    drawn = write_plots(content, folder, pictures)
    write_whole(folder / page, report(content, {name: f"{pictures}{name}.png" for name in drawn}))
    return f"{folder / page} is written, from {len(content['cells'])} cells."


def report(content: Content, pictures: dict[str, str]) -> str:
    """The page's text; `pictures`: the files of those plots that there is something to draw for."""
    about, settings = content["cells"]["about"], content["settings"]
    sizes, processor = settings["sizes"], settings["device"] == "CPU"
    sections = {
        "tasks": _tasks,
        "alpha": _alpha,
        "stability": _stability,
        "speed": _speed,
        "robustness": _robustness,
        "forgetting": _forgetting,
        "full": _full_size,
    }
    made = {}
    for name, write in sections.items():
        there = any(cells(content, kind) for kind in NEEDS.get(name, (name,)))
        shown = f"\n\n![{name.capitalize()}]({pictures[name]})" if name in pictures else ""
        made[name] = write(content) + shown if there else NOT_MEASURED
    quick = f"{QUICK}\n\n" if "--quick" in about["command"] else ""
    values = about | sizes | made | {"rate": f"{sizes['rate']:g}", "alpha_usual": sizes["alpha"]}
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        values,
        versions=", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        device=settings["device"],
        count=sum(not key.startswith("about") for key in content["cells"]),
        answer=_answer(content),
        quick=quick,
        computed="fp32, as everything on a processor" if processor else "bf16",
        gptq=_gptq(content["cells"].get("gptq")),
        tokens=sizes["new_tokens"],
    )


def _answer(content: Content) -> str:
    """The answer in a sentence: how far trained arms are from the control; "" before they have seeds."""
    by_task = [_losses(by_arm(content, "task", task)) for task in SCORES]
    said = []
    for arm, name in ARM_NAMES.items():
        sides = [(of.get(arm, []), of.get(CONTROL, [])) for of in by_task if arm != CONTROL]
        pairs = [pair for pair in sides if min(map(len, pair)) > 1]
        if not pairs:
            continue
        gaps = [statistics.fmean(one) - statistics.fmean(other) for one, other in pairs if apart(one, other)]
        range_ = " to ".join(dict.fromkeys(f"{gap:+.3f}" for gap in (min(gaps), max(gaps)))) if gaps else ""
        said.append(f"with {name} {f'by {range_} ' if gaps else ''}on {len(gaps)} of {len(pairs)} tasks")
    if not said:
        return ""
    return (
        "**In short: where the ranges over the seeds don't overlap, a trained model's loss (nats a token) "
        f"differs from {ARM_NAMES[CONTROL]}'s {', '.join(said)}.**\n\n"
    )


def _losses(tuned: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """By arm, the loss on the test rows of each run that has one."""
    return {arm: given(run.get("loss") for run in runs) for arm, runs in tuned.items()}


def _gptq(made: Mapping[str, Any] | None) -> str:
    if not made:
        return NOT_MEASURED
    ratios, (count, length) = made["ratios"], made["windows"]
    better = sum(ratio < 1 for ratio in ratios)
    return (
        f"It was calibrated on {count} windows of {length} tokens of this project's own pages "
        "(`studies/data/calibration.txt`). On those, the squared error of a layer's outputs is below "
        f"that of rounding to nearest in {better} of {len(ratios)} layers, and in the median "
        f"{statistics.median(ratios):.2f} times that ({min(ratios):.2f} to {max(ratios):.2f})."
    )


def _tasks(content: Content) -> str:
    rows, said = [], []
    for task, name in SCORES.items():
        tuned = by_arm(content, "task", task)
        for arm, title in ARM_NAMES.items():
            runs = tuned.get(arm, [])
            before = content["cells"].get(f"untuned|{arm}", {}).get("tasks", {}).get(task)
            if not before and not runs:
                continue
            rows.append(
                [
                    task,
                    title,
                    f"{before['loss']:.3f}" if before else "",
                    spread(given(run.get("loss") for run in runs)),
                    name,
                    f"{before['score']:.2f}" if before else "",
                    spread(given(run.get("score") for run in runs), "{:.2f}"),
                ]
            )
        if tuned:
            losses = _losses(tuned)
            scores = {arm: given(run.get("score") for run in runs) for arm, runs in tuned.items()}
            said.append(f"- {task}, loss. {verdict(losses)}")
            said.append(f"- {task}, {name}. {verdict(scores, '{:+z.2f}')}")
    head = ["task", "arm", "loss untuned", "loss tuned", "score", "untuned", "tuned"]
    return section(head, rows, said)


def _alpha(content: Content) -> str:
    alphas = content["settings"]["alphas"]
    rows, said = [], []
    for mode in ("fixed", "compensated"):
        by_alpha: list[dict[str, list[float]]] = []
        for alpha in alphas:
            every = {arm: at_alpha(content, mode, alpha, arm) for arm in ARM_NAMES}
            arms = {arm: runs for arm, runs in every.items() if runs}
            by_alpha.append({arm: given(last_loss(run) for run in runs) for arm, runs in arms.items()})
            lost = {arm: sum(run["diverged"] for run in runs) for arm, runs in arms.items()}
            shown = [
                spread(by_alpha[-1].get(arm, []), "{:.2f}")
                + (f", {lost[arm]} diverged" if lost.get(arm) else "")
                for arm in ARM_NAMES
            ]
            rows.append([mode, str(alpha), *shown])
            if arms and (mode, alpha) != ("compensated", alphas[0]):
                said.append(f"- {mode} rate, alpha {alpha}. {verdict(by_alpha[-1])}")
        moves = [
            f"{name} {statistics.fmean(last) - statistics.fmean(first):+.3f} ({judged(first, last)})"
            for arm, name in ARM_NAMES.items()
            if (first := by_alpha[0].get(arm)) and (last := by_alpha[-1].get(arm))
        ]
        if moves:
            said.append(f"- {mode} rate, alpha {alphas[-1]} against {alphas[0]}: {'; '.join(moves)}.")
    head = ["rate", "alpha", *ARM_NAMES.values()]
    return section(head, rows, said)


def _stability(content: Content) -> str:
    rows, said = [], []
    for rate in rates(content):
        runs_of = {arm: runs for arm in ARM_NAMES if (runs := at_rate(content, rate, arm))}
        norms = {arm: largest_norms(runs) for arm, runs in runs_of.items()}
        for arm, runs in runs_of.items():
            diverged, spikes = (sum(run[name] for run in runs) for name in ("diverged", "spikes"))
            last = spread(given(last_loss(run) for run in runs), "{:.2f}")
            norm = spread(norms[arm], "{:.3g}")
            rows.append([f"{rate:g}", ARM_NAMES[arm], f"{diverged} of {len(runs)}", str(spikes), norm, last])
        if runs_of:
            said.append(f"- largest gradient norm at {rate:g}. {verdict(norms, '{:+z.2f}')}")
    head = ["learning rate", "arm", "diverged", "spikes", "largest gradient norm", "last loss"]
    return section(head, rows, said)


def _robustness(content: Content) -> str:
    tasks = content["settings"]["tasks"]
    rows, said = [], []
    for change in (*CHANGES, "other domain"):
        losses = {arm: mean_by_seed(content, arm, partial(rise, change=change), tasks) for arm in ARM_NAMES}
        if any(losses.values()):
            rows.append([change, *(spread(values, "{:+z.3f}") for values in losses.values())])
            said.append(f"- {change}. {verdict(losses)}")
    obeyed = {arm: mean_by_seed(content, arm, lambda cell: cell.get("obeyed"), tasks) for arm in ARM_NAMES}
    rows.append(
        ["obeys the injected line (share)", *(spread(values, "{:.2f}") for values in obeyed.values())]
    )
    return section(["change", *ARM_NAMES.values()], rows, said)


def _forgetting(content: Content) -> str:
    tasks = content["settings"]["tasks"]
    rows, said = [], []
    for kind in UNLIKE:
        before = [content["cells"].get(f"untuned|{arm}", {}).get("unlike", {}).get(kind) for arm in ARM_NAMES]
        rows.append([kind, "untuned", *(f"{loss:.3f}" if loss else "" for loss in before)])
        rises = {arm: mean_by_seed(content, arm, partial(forgotten, kind=kind), tasks) for arm in ARM_NAMES}
        rows.append([kind, "rise by training", *(spread(values, "{:+z.3f}") for values in rises.values())])
        if any(rises.values()):
            said.append(f"- {kind}. {verdict(rises)}")
    return section(["text", "", *ARM_NAMES.values()], rows, said)


def _speed(content: Content) -> str:
    rows: list[list[str]] = []
    for kind, name, cell in written(content):
        engine = f"{'llama.cpp' if kind == 'gguf' else 'transformers'}, {place(content, kind)}"
        rows += _by_batch(engine, ARM_NAMES.get(name, name), cell)
    head = ["engine", "weights", "batch", "first token, s", "tokens/s", "GB stored", "GB at the peak"]
    said = [] if cells(content, "gguf") else [NO_GGUF]
    said += _lacking(content, "speed")
    if about := content["cells"].get("about processor"):
        said.append(
            f"The processor's figures were measured on {about['date']}, with a load of {about['load']:g} on "
            f"{about['cores']} cores when it began. Above the number of cores, other programs took a share: "
            "speeds are lower, and ranges wider, than they would be alone."
        )
    return section(head, rows, said)


def _lacking(content: Content, kind: str) -> list[str]:
    """Which arms aren't there yet, where some are."""
    there, device = by_arm(content, kind), content["settings"]["device"]
    lacking = ", ".join(name for arm, name in ARM_NAMES.items() if arm not in there)
    return [f"Not measured yet on {device}: {lacking}."] if there and lacking else []


def _by_batch(engine: str, title: str, cell: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each batch."""
    for batch, found in cell["batches"].items():
        speeds, peak = found["tokens_per_s"], found["memory_gb"]
        range_ = f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"
        first = f"{statistics.median(found['first_s']):.3f}"
        yield [
            engine,
            title,
            batch,
            first,
            range_,
            f"{cell['weights_gb']:.3f}",
            f"{peak:.2f}" if peak else "",
        ]


def _full_size(content: Content) -> str:
    found = {arm: content["cells"][f"full|{arm}"] for arm in ARM_NAMES if f"full|{arm}" in content["cells"]}
    rows = [row[1:] for arm, cell in found.items() for row in _by_batch("", ARM_NAMES[arm], cell)]
    head = ["base", "batch", "first token, s", "tokens/s", "GB stored", "GB at the peak"]
    trained = training_table({ARM_NAMES[arm]: cell for arm, cell in found.items()})
    return section(head, rows, ["\n\n".join([trained, *_lacking(content, "full")])])
