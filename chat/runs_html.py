"""The cards of runs and sweeps on the page /runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from chat.cards_html import badge, card, command, fold, link, name, notes, number, query, table, text, when
from chat.loss_curve import loss_svg
from chat.run_files import Manifest, Sample, Scores, Speed
from chat.runs import Run, Sweep
from core.sms import BASELINES, FIGURES, is_of_baseline

CARDS = 20  # runs that are shown with all they have
LINKS = 500  # older ones, as links
SAMPLE = 2_000  # characters
ROWS, COLUMNS = 200, 14  # of a sweep

LOSSES = {"base16": "untouched base, 16 bit", "start": "before the first step", "last": "at the end"}
SPEEDS = {"memory_gb": "peak memory, GB", "tokens_per_s": "tokens/s", "minutes": "minutes"}
LEGEND = (
    '<p class="legend"><span class="training">training</span> <span class="validation">validation</span> '
    '<span class="best">the best</span> <span class="axis">loss in {unit}</span></p>'
)

Made = Callable[[str], str]  # links to a run's files, by its name


def runs_html(found: Sequence[Run | Sweep], made: Made) -> str:
    """Cards of those that don't run now, the newest open; older ones as links."""
    shown = [_card(run, number, made, folded=number > 0) for number, run in enumerate(found[:CARDS])]
    older = (link("runs?" + query(run=run.name), name(run.name)) for run in found[CARDS : CARDS + LINKS])
    rest = ", ".join(older)
    return "".join(shown) + (f"<p>Older: {rest}</p>" if rest else "")


def running_html(found: Sequence[Run]) -> str:
    """Cards of the runs that go on at this moment."""
    return "".join(_card(run, 1000 + number, lambda _: "", folded=None) for number, run in enumerate(found))


def _card(run: Run | Sweep, number: int, made: Made, folded: bool | None) -> str:
    if isinstance(run, Sweep):
        return _sweep(run, folded)
    head = f"<h3>{name(run.name)}</h3>{badge(run.state, run.said)}"
    sub = filter(None, (text(run.base), _loss(run), when(run.changed)))
    head += f'<span class="sub">{" · ".join(sub)}</span>'
    manifest = run.manifest
    unit = "a pair" if run.preferences else "nats a token"
    figures = [_losses(manifest, unit), _scores(manifest.scores), _forecast(manifest)] if manifest else []
    grid = "".join(filter(None, figures))
    picture = loss_svg(run.curve, unit, number)
    body = [
        _bar(run),
        f"<p>{text(run.recipe.get('description', ''))}</p>" if run.recipe.get("description") else "",
        notes(run.notes),
        picture and f"<figure>{picture}{LEGEND.format(unit=unit)}</figure>",
        f'<div class="tables">{grid}</div>' if grid else "",
        _samples(run.samples),
        fold("Facts", _facts(manifest)) if manifest else "",
        fold("Settings, as recipe.yaml has them", _settings(run)),
        made(run.name) or _next(run),
    ]
    return card(head, "".join(filter(None, body)), folded)


def _loss(run: Run) -> str:
    """What the training did, in a line."""
    evaluated = run.curve.validation
    if not run.curve.best or len(evaluated) < 2:
        return ""
    return f"validation loss {number(evaluated[0][1])} → {number(run.curve.best[1])}"


def _bar(run: Run) -> str:
    if run.state != "running" or not run.steps:
        return ""
    return f'<progress max="{run.steps}" value="{run.curve.last}" aria-label="Steps done"></progress>'


def _losses(manifest: Manifest, unit: str) -> str:
    losses = manifest.eval_loss
    rows = [(label, number(getattr(losses, key))) for key, label in LOSSES.items()]
    at = f", step {losses.best_step:,}" if losses.best_step is not None else ""
    rows.insert(2, (f"best{at}", number(losses.best)))
    held_out = {side: getattr(manifest.scores, side).get("test_loss") for side in ("before", "after")}
    rows += [(f"held-out rows, {side} training", number(value)) for side, value in held_out.items()]
    return table(f"Loss, {unit}", ("", ""), [row for row in rows if row[1]])


def _scores(scores: Scores) -> str:
    """The figures on the test rows, and likelihoods' beside what needs no language model; the bins of a
    calibration are in the run's README.md."""
    before, after = scores.before, scores.after
    names = [n for n in {**before, **after} if not n.startswith("bin_") and not is_of_baseline(n)]
    rows = [
        (text(name.replace("_", " ")), number(before.get(name)), number(after.get(name)))
        for name in names[:40]
        if name != "test_loss"
    ]
    columns = [figure for figure in FIGURES if any(score.endswith(f"_{figure}") for score in after)]
    beside = [
        (label, *(number(after.get(f"{name}_{figure}")) for figure in columns))
        for name, label in BASELINES.items()
        if any(f"{name}_{figure}" in after for figure in columns)
    ]
    heads = ("", *(column.replace("_", " ") for column in columns))
    made = table("Scores on held-out rows", ("", "before", "after"), rows)
    return made + table("Without a language model, on the same rows", heads, beside)


def _forecast(manifest: Manifest) -> str:
    rows = []
    for key, label in SPEEDS.items():
        foreseen, measured = (getattr(side, key) for side in (manifest.predicted, manifest.actual))
        if foreseen is not None or measured is not None:
            rows.append((label, number(foreseen) or "none", number(measured) or "none"))
    made = table("Forecast and measured", ("", "forecast", "measured"), rows)
    why = (
        ""
        if manifest.predicted != Speed() or not made
        else "<p>No forecast: it is made for GPUs with known figures.</p>"
    )
    return f"<div>{made}{why}</div>" if made else ""


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    pairs = []
    for sample in samples:
        after = "(not yet: the run isn't done)" if sample.after is None else sample.after
        sides = (("Prompt", "prompt", sample.prompt), ("Before", "", sample.before), ("After", "", after))
        pairs.append(
            "".join(
                f'<div class="{kind}"><b>{title}</b><p dir="auto">{text(said, SAMPLE)}</p></div>'
                for title, kind, said in sides
            )
        )
    shown = "".join(f'<div class="sample">{pair}</div>' for pair in pairs)
    return f"<h4>Samples before and after, greedy</h4>{shown}"


def _facts(manifest: Manifest) -> str:
    trained = f"{manifest.trainable_parameters:,} of {manifest.parameters:,}" if manifest.parameters else ""
    minutes = f"{manifest.wall_seconds / 60:,.1f} minutes" if manifest.wall_seconds else ""
    rows = {
        "trainer": text(manifest.trainer),
        "parameters that are trained": trained,
        "tokens": f"{manifest.tokens:,}" if manifest.tokens else "",
        "device": text(manifest.device),
        "time, all in all": minutes,
    }
    return table("Facts", ("", ""), [row for row in rows.items() if row[1]])


def _settings(run: Run) -> str:
    rows = [(text(key), text(value)) for key, value in run.recipe.items() if key != "description"]
    return table("Settings", ("", ""), rows)


def _next(run: Run) -> str:
    """The command that goes on from here, typed in the repository."""
    if run.state == "finished":
        line = f"python convert/to_gguf.py {shlex.quote(run.name)} --quant q5"
        return f"<p>Not in models/ yet. To chat with it:</p>{command(line)}"
    if run.state == "interrupted":
        line = f"python train/qlora.py {shlex.quote(f'outputs/{run.name}/recipe.yaml')} --resume"
        return f"<p>To go on with it:</p>{command(line)}"
    return ""


def _sweep(sweep: Sweep, folded: bool | None) -> str:
    count = f"{len(sweep.rows):,} run{'' if len(sweep.rows) == 1 else 's'}"
    state = ("finished", f"sweep of {count}, finished") if sweep.done else ("", f"sweep, {count} done so far")
    head = f'<h3>{name(sweep.name)}</h3>{badge(*state)}<span class="sub">{when(sweep.changed)}</span>'
    keys = list(dict.fromkeys(key for row in sweep.rows for key in row if key != "config"))[:COLUMNS]
    losses = [row["best_eval_loss"] for row in sweep.rows if isinstance(row.get("best_eval_loss"), float)]
    best = min(losses, default=None)
    rows = []
    for at, row in enumerate(sweep.rows[:ROWS], 1):
        cells = [_cell(row.get(key)) for key in keys]
        is_best = best is not None and row.get("best_eval_loss") == best
        rows.append([f"{at}, the best" if is_best else str(at), *cells])
    heads = [text(key.rpartition(".")[2].replace("_", " ")) for key in keys]
    body = notes(sweep.notes) + table("Runs of the sweep", ["run", *heads], rows)
    if len(sweep.rows) > ROWS:
        body += f"<p>{len(sweep.rows) - ROWS:,} more are in rows.jsonl.</p>"
    return card(head, body, folded)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else text(str(value)) if value is not None else ""
