"""The study's report, from results.json alone: the same JSON gives the same page."""

from __future__ import annotations

import statistics
from pathlib import Path

from core.files import write_whole
from studies.quantised_cells import (
    ARM_NAMES,
    Content,
    at_rate,
    by_arm,
    cells,
    forgotten,
    last_loss,
    mean_by_seed,
    rise,
    verdict,
)
from studies.quantised_plots import write_plots
from studies.quantised_speed import full_size_table, speed_table
from studies.quantised_tasks import CHANGES, SCORES
from studies.seeds import given, judged, spread
from studies.tables import section

REPORT = "report.md"
KINDS = ("code", "licence", "manual")


def write_report(content: Content, folder: Path, page: str = REPORT, pictures: str = "") -> str:
    """Write the page and its plots into `folder`, the plots' names beginning with `pictures`; say where."""
    drawn = write_plots(content, folder, pictures)
    write_whole(folder / page, report(content, {name: f"{pictures}{name}.png" for name in drawn}))
    return f"{folder / page} is written, from {len(content['cells'])} cells."


def report(content: Content, pictures: dict[str, str]) -> str:
    """The page's text; `pictures`: the files of those plots that there is something to draw for."""
    sections = [
        ("tasks", "Tasks, untuned and tuned", _tasks, ("untuned", "task")),
        ("alpha", "How large a lora_alpha", _alpha, ("alpha",)),
        ("stability", "Does quantisation make training unstable", _stability, ("rate",)),
        ("speed", "Speed and memory of inference", speed_table, ("speed", "processor", "gguf")),
        ("full", "Llama-2-7B: memory and speed", full_size_table, ("full",)),
        ("robustness", "Robustness: what a changed prompt costs", _robustness, ("task",)),
        ("forgetting", "What is forgotten", _forgetting, ("task",)),
    ]
    text, missing = [_head(content), f"## Four arms\n\n{_arms(content)}"], []
    for name, title, write, needs in sections:
        if not any(cells(content, kind) for kind in needs):
            missing += [title] if name != "full" else []  # that needs a GPU
            continue
        shown = f"\n\n![{title}]({pictures[name]})" if name in pictures else ""
        text.append(f"## {title}\n\n{write(content)}{shown}")
    if missing:
        text.append(f"Not measured here: {'; '.join(missing)}.")
    return "\n\n".join(text) + "\n"


def _head(content: Content) -> str:
    about, settings = content["cells"]["about"], content["settings"]
    sizes = settings["sizes"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    quick = (
        "**This is the quick look, with so few rows that it shows the way only, whatever the seeds say.**\n\n"
        if "--quick" in about["command"]
        else ""
    )
    return (
        "# What a quantised base does to training, and to what comes out\n\n"
        f"`{about['command']}` on {settings['device']} ({about['cores']} cores), {about['date']}; "
        f"{versions}. The base is {about['base']}. All figures are from the JSON beside this page "
        f"({len(content['cells'])} cells).\n\n{quick}"
        f"Each run trains an adapter (r {sizes['rank']}, alpha {sizes['alpha']}, all linear layers, "
        f"learning rate {sizes['rate']:g}) on at most {sizes['train_rows']} rows for {sizes['epochs']} "
        f"epochs in steps of {sizes['batch']}, and is judged by at most {sizes['test_rows']} others. **A "
        "figure is a mean, with the range over its seeds in brackets.** Two arms are said to differ "
        "where their ranges don't overlap, and what overlaps is called within the spread of the seeds. "
        "With three seeds each, ranges of equal arms are apart once in ten times by chance, so among "
        "dozens of comparisons some will be: one difference alone shows little. Seeds change where "
        "adapters begin and in which order rows come. The rows stay the same, so what others would have "
        "said isn't in the spread.\n\n"
        "The sets are small and say how arms compare, not how good a model is. Reviews, reports and "
        "sentences with their translations were written for this project (Apache-2.0, `studies/data`); "
        "the quotations are MIT's `train/recipes/quotes.jsonl`. A base whose 16-bit weights were written "
        "out of a GGUF of four bits, as the tour's SmolLM2-135M out of Q4_1, lies near a 4-bit grid "
        "already, which may flatter the arms with four bits."
    )


def _arms(content: Content) -> str:
    made = content["cells"].get("gptq")
    device = "in fp32, as everything on a processor" if content["settings"]["device"] == "CPU" else "in bf16"
    text = (
        "NF4 and int8 are bitsandbytes' (double quantisation; LLM.int8()), bf16 is the base as it is, "
        f"computed {device}. GPTQ is made by `train/to_gptq.py`, the algorithm of arXiv 2210.17323, "
        "symmetric, in groups of 64."
    )
    if not made:
        return text
    ratios, (count, length) = made["ratios"], made["windows"]
    better = sum(ratio < 1 for ratio in ratios)
    return (
        f"{text} It was calibrated on {count} windows of {length} tokens of this project's own pages "
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
            losses = {arm: given(run.get("loss") for run in runs) for arm, runs in tuned.items()}
            scores = {arm: given(run.get("score") for run in runs) for arm, runs in tuned.items()}
            said.append(f"- {task}, loss. {verdict(losses)}")
            said.append(f"- {task}, {name}. {verdict(scores, '{:+.2f}')}")
    head = ["task", "arm", "loss untuned", "loss tuned", "score", "untuned", "tuned"]
    note = (
        "Losses in nats a token of the answer. Scores from 0 to 1: format kept is the share of replies "
        "with a quote and an author; accuracy is by the probabilities of the two labels; ROUGE-L is an "
        "F1, chrF an F2. Untuned models are asked once, as nothing in them depends on a seed."
    )
    return section(head, rows, note, said)


def _alpha(content: Content) -> str:
    alphas = content["settings"]["alphas"]
    rows, said = [], []
    for mode in ("fixed", "compensated"):
        by_alpha: list[dict[str, list[float]]] = []
        for alpha in alphas:
            arms = by_arm(content, "alpha", mode if alpha != alphas[0] else "fixed", str(alpha))
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
    note = (
        "Validation loss at the end (nats a token) on quotations. The fixed rate is the same for each "
        "alpha; the compensated one is divided by how much larger alpha / r is, so that what is left is "
        "alpha's own effect. The first alpha is both. A diverged run stopped at a loss of 1.5 times that "
        "before training, or broke."
    )
    head = ["rate", "alpha", *ARM_NAMES.values()]
    return section(head, rows, note, said)


def _stability(content: Content) -> str:
    rates = sorted({*content["settings"]["rates"], content["settings"]["sizes"]["rate"]})
    rows, said = [], []
    for rate in rates:
        runs_of = {arm: runs for arm in ARM_NAMES if (runs := at_rate(content, rate, arm))}
        norms = {
            arm: given(max(given(run["grad_norms"]), default=None) for run in runs)
            for arm, runs in runs_of.items()
        }
        for arm, runs in runs_of.items():
            diverged, spikes = (sum(run[name] for run in runs) for name in ("diverged", "spikes"))
            last = spread(given(last_loss(run) for run in runs), "{:.2f}")
            norm = spread(norms[arm], "{:.3g}")
            rows.append([f"{rate:g}", ARM_NAMES[arm], f"{diverged} of {len(runs)}", str(spikes), norm, last])
        if runs_of:
            said.append(f"- largest gradient norm at {rate:g}. {verdict(norms, '{:+.2f}')}")
    note = (
        "A spike is a step whose loss is above 1.5 times the mean of the five before it. The gradient's "
        "norm is that before clipping to 1. bf16 is the control: what it does too isn't quantisation's "
        "doing."
    )
    head = ["learning rate", "arm", "diverged", "spikes", "largest gradient norm", "last loss"]
    return section(head, rows, note, said)


def _robustness(content: Content) -> str:
    tasks = content["settings"]["tasks"]
    rows, said = [], []
    for change in (*CHANGES, "other domain"):
        losses = {
            arm: mean_by_seed(content, arm, lambda cell, change=change: rise(cell, change), tasks)
            for arm in ARM_NAMES
        }
        if any(losses.values()):
            rows.append([change, *(spread(values, "{:+.3f}") for values in losses.values())])
            said.append(f"- {change}. {verdict(losses)}")
    obeyed = {arm: mean_by_seed(content, arm, lambda cell: cell.get("obeyed"), tasks) for arm in ARM_NAMES}
    rows.append(
        ["obeys the injected line (share)", *(spread(values, "{:.2f}") for values in obeyed.values())]
    )
    note = (
        "How much the loss of the right answer rises (nats a token) when the prompt of a tuned model is "
        "changed: the mean over tasks, for each seed. Other domain is of sentiment: goods in place of "
        "food and rooms. It is each arm's own rise, so an arm that is worse throughout isn't called "
        "fragile for it."
    )
    return section(["change", *ARM_NAMES.values()], rows, note, said)


def _forgetting(content: Content) -> str:
    tasks = content["settings"]["tasks"]
    rows, said = [], []
    for kind in KINDS:
        before = [content["cells"].get(f"untuned|{arm}", {}).get("unlike", {}).get(kind) for arm in ARM_NAMES]
        rows.append([kind, "untuned", *(f"{loss:.3f}" if loss else "" for loss in before)])
        rises = {
            arm: mean_by_seed(content, arm, lambda cell, kind=kind: forgotten(cell, kind), tasks)
            for arm in ARM_NAMES
        }
        rows.append([kind, "rise by training", *(spread(values, "{:+.3f}") for values in rises.values())])
        if any(rises.values()):
            said.append(f"- {kind}. {verdict(rises)}")
    note = (
        "Loss (nats a token) on text that is like none of the tasks: Python code, the Apache licence and "
        "a page about this project's chat; the rise is the mean over tasks, for each seed. The plot has "
        "it by epoch. GPTQ was calibrated on other pages of the last kind."
    )
    return section(["text", "", *ARM_NAMES.values()], rows, note, said)
