"""What the study of quantised bases measured, as a page and its plots; all of it from results.json."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from bench import full_size, inference_report
from bench.comparison import Panel, Section, in_short, share, total
from bench.figures import by_arm, by_seed, measured
from bench.study import Content
from bench.task_sets import load_tasks
from train.to_gptq import said_of

DATA = Path(__file__).with_name("data")
CONTROL = "bf16"
COLOURS = {"GPTQ": "#d55e00", "NF4": "#0072b2", "int8": "#009e73", CONTROL: "#555555"}
ARMS = {name: name.lower() for name in COLOURS}  # in keys
DRAWN = {name: {"color": colour} for name, colour in COLOURS.items()} | inference_report.FILES_DRAWN
CHANGES = ("typos", "case", "paraphrase", "distractor", "injection", "other domain")
UNLIKE = ("code", "licence", "manual")  # the kinds of text that are like none of the tasks
LOSS, LAST, RISE = "loss (nats a token)", "evals.-1.loss", "{:+z.3f}"

section_of = partial(Section.of, arms=ARMS, control=CONTROL)


def sections(content: Content) -> dict[str, Section]:
    """The parts of the page by their names."""
    cells, device = content["cells"], content["settings"]["device"]
    full = {name: of[0] for name, of in runs(content, "full").items() if of}
    made = tasks(content)
    answer = in_short([panel.measure for panel in made.panels], CONTROL, "a trained model's")
    return {
        "answer": Section([answer]),
        "gptq": Section([said_of(cells.get("gptq"))]),
        "tasks": made,
        "alphas": alphas(content),
        "stability": stability(content),
        "speed": inference_report.section(cells, device, ARMS, cells["about"]["cores"]),
        "robustness": robustness(content),
        "forgetting": forgetting(content),
        "full": full_size.section(full, ARMS, device),
    }


def runs(content: Content, *begins: str) -> dict[str, list[Any]]:
    """The cells of each arm whose keys begin so."""
    return by_arm(content["cells"], "|".join(begins), ARMS)


def over(content: Content, values: Iterable[float], usual: float, *begins: str) -> dict[str, Any]:
    """The runs at each value; those at the usual one are the quotes', of the seeds that the others have."""
    again = by_arm(content["cells"], "task|quotes", ARMS, content["settings"]["seeds"])
    return {f"{each:g}": again if each == usual else runs(content, *begins, f"{each:g}") for each in values}


def seeds_of(content: Content) -> dict[str, Any]:
    """For each arm and seed its runs of all tasks, without those that diverged."""
    begins = [f"task|{task}" for task in content["settings"]["tasks"]]
    return by_seed(content["cells"], begins, ARMS, having="loss")


def tasks(content: Content) -> Section:
    """Loss and score of each task, untuned and tuned."""
    sets = {name: task for name, task in load_tasks(DATA).items() if name in content["settings"]["tasks"]}
    tuned = {name: runs(content, "task", name) for name in sets}
    untuned, before, after = dict.fromkeys(sets, runs(content, "untuned")), [], []
    for name, figure, form in ((LOSS, "loss", "{:.3f}"), ("score", "score", "{:.2f}")):
        before.append(measured(f"{name}, untuned", "task", untuned, f"tasks.{{}}.{figure}", form=form))
        after.append(measured(name, "task", tuned, figure, form=form))
    scores = [f"{name}\n{task.score}" for name, task in sets.items()]
    panels = [
        Panel(after[0], before[0], title="lower is better"),
        Panel(after[1], before[1], title="higher is better", ticks=scores),
    ]
    title = "Tasks: tuned (dots, bars over seeds) and untuned (hollow)"
    return section_of([*before, *after], after, title=title, panels=panels)


def alphas(content: Content) -> Section:
    """Loss at the end over alpha, with a fixed and with a compensated rate."""
    sizes, made = content["settings"]["sizes"], []
    for mode in ("fixed", "compensated"):
        places = over(content, content["settings"]["alphas"], sizes["alpha"], "alpha", mode)
        made.append(measured(f"last {LOSS}, {mode} rate", "lora_alpha", places, LAST, marked="diverged"))
    panels = [Panel(each, joined=True) for each in made]
    return section_of(made, made, title=f"lora_alpha at r {sizes['rank']}", panels=panels, ends=True)


def stability(content: Content) -> Section:
    """What becomes of runs at each learning rate."""
    settings = content["settings"]
    usual = settings["sizes"]["rate"]
    places = over(content, sorted({*settings["rates"], usual}), usual, "rate")
    look = partial(measured, x="learning rate", places=places)
    diverged = look("runs that diverged (share)", figure="diverged", shown=share)
    spikes = look("spikes of all runs", figure="spikes", shown=total)
    norm = look("largest gradient norm of a run", figure="grad_norms.max", form="{:.3g}")
    last = look(f"last {LOSS}", figure=LAST, form="{:.2f}", marked="diverged")
    panels = [Panel(diverged, limits=(-0.05, 1.05)), Panel(norm, log=True)]
    return section_of([diverged, spikes, norm, last], [norm], title="Learning rates", panels=panels)


def robustness(content: Content) -> Section:
    """What a changed prompt costs a tuned model: the mean over the tasks, for each seed."""
    seeds = seeds_of(content)
    places = dict.fromkeys(CHANGES, seeds)
    rises = measured(f"rise of the {LOSS}", "change", places, "changed.{}.loss", "loss", form=RISE)
    obeyed = measured("obeys the injected line (share)", "change", {"": seeds}, "obeyed", form="{:.2f}")
    title = "What a changed prompt costs a tuned model"
    return section_of([rises, obeyed], [rises], title=title, panels=[Panel(rises, zero=True)])


def forgetting(content: Content) -> Section:
    """What becomes of the loss on other text: over all tasks, and by epoch of the first one."""
    settings = content["settings"]
    first = next(iter(settings["tasks"]), "")
    places = dict.fromkeys(UNLIKE, seeds_of(content))
    untuned = dict.fromkeys(UNLIKE, runs(content, "untuned"))
    before = measured(f"{LOSS}, untuned", "text", untuned, "unlike.{}")
    rises = measured("rise by training", "text", places, "evals.-1.{}", "evals.0.{}", form=RISE)
    epochs = dict.fromkeys(map(str, range(settings["sizes"]["epochs"] + 1)), runs(content, "task", first))
    look = partial(measured, LOSS, "epoch", epochs)
    panels = [Panel(look(f"evals.{{}}.{kind}"), joined=True, title=kind) for kind in UNLIKE]
    return section_of([before, rises], [rises], title=f"Other text while {first} are learnt", panels=panels)
