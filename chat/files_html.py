"""The cards of the files in models/ on the page /runs."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence

from chat.cards_html import badge, card, command, fold, link, name, notes, number, query, table, text, when
from chat.made_files import Check, MadeFile, Quality
from core.machine import human_size

CARDS = 100
CHECKS, STAGES = 200, 20

VERDICTS = {
    "ok": ("finished", "good: every check passed"),
    "warn": ("interrupted", "good, with warnings"),
    "fail": ("failed", "bad: a check failed; don't use this file"),
    "n/a": ("", "not checked"),
}
KINDS = {
    "unverified": ("failed", "unverified: it failed a check; don't use this file"),
    "partial": ("interrupted", "not whole: it is being written, or was left by a stop"),
    "adapter": ("", "an adapter, used over its base"),
}
MARKS = {"ok": "ok", "n/a": "not checked", "warn": "warning", "fail": "failed"}


def files_html(files: Sequence[MadeFile], runs: Collection[str]) -> str:
    """A card a file; `runs` are those that outputs/ has."""
    shown = "".join(_card(file, at, runs) for at, file in enumerate(files[:CARDS]))
    more = f"<p>{len(files) - CARDS:,} older files aren't shown.</p>" if len(files) > CARDS else ""
    return shown + more


def files_of_run(files: Sequence[MadeFile], run: str) -> str:
    """Links to a run's files on this page, and to chats with them; empty if it has none."""
    parts = []
    for at, file in enumerate(files[:CARDS]):
        made = {entry.run for entry in file.entries.values()} | {file.quality and file.quality.run}
        if run in made:
            parts.append(f"<li>{link(f'runs#file-{at}', name(file.file))} {_chats(file)}</li>")
    return f"<h4>Files made of it</h4><ul>{''.join(parts)}</ul>" if parts else ""


def _card(file: MadeFile, at: int, runs: Collection[str]) -> str:
    quality = file.quality
    state = KINDS.get(file.kind) or (quality and quality.verdict and VERDICTS[quality.verdict])
    head = f"<h3>{name(file.file)}</h3>{badge(*(state or ('', 'not measured here')))}"
    head += f'<span class="sub">{" · ".join(filter(None, [*_sub(file), when(file.changed)]))}</span>'
    body = [notes(file.notes)]
    if quality:
        body += [_of_run(quality, runs), _wrong(quality), _stages(quality)]
        body.append(fold(f"All {len(quality.checks)} checks", _checks(quality.checks)))
    elif file.kind == "unverified":
        body.append("<p>Why isn't written beside it: the command that made it has told.</p>")
    else:
        body += [_of_menu(file)]
    body.append(_chats(file) or _start(file))
    return card(head, "".join(filter(None, body)), part=f"file-{at}")


def _sub(file: MadeFile) -> list[str]:
    quant = file.quality.file_type if file.quality else ""
    quant = quant or next((entry.quant for entry in file.entries.values() if entry.quant), "")
    contexts = {f"context {entry.n_ctx:,}" for entry in file.entries.values()}
    base = file.quality.base if file.quality else ""
    base = base or next((entry.base for entry in file.entries.values() if entry.base), "")
    size = human_size(file.size) if file.size is not None else ""
    return [size, text(quant), *sorted(contexts), text(base)]


def _of_run(quality: Quality, runs: Collection[str]) -> str:
    run = quality.run or ""
    shown = link("runs?" + query(run=run), name(run)) if run in runs else name(run)
    made = f"Made of the run {shown}. " if run else ""
    on = f"Measured on {text(quality.tested_on)}." if quality.tested_on else ""
    return f"<p>{made}{on}</p>" if made or on else ""


def _wrong(quality: Quality) -> str:
    """The checks that say why a file is bad, or not wholly good."""
    found = [check for check in quality.checks if check.verdict in ("fail", "warn")]
    lines = "".join(
        f"<li><b>{MARKS[check.verdict]}: {text(check.name)}</b> {text(_said(check))}</li>"
        for check in sorted(found, key=lambda check: check.verdict)[:CHECKS]
    )
    return f'<ul class="wrong">{lines}</ul>' if lines else ""


def _stages(quality: Quality) -> str:
    """Loss by stage; the rest is against the stage before, which the first hasn't."""
    rows = []
    for at, (stage, score) in enumerate(list(quality.scores.items())[:STAGES]):
        share = f"{score.same_top:.1%}" if score.same_top is not None and abs(score.same_top) < 1e6 else ""
        against = [number(score.kl_mean), number(score.kl_99), share] if at else ["", "", ""]
        rows.append([text(stage), number(score.loss), number(score.perplexity), *against])
    heads = ("stage", "loss", "perplexity", "mean KL", "99 % KL", "same top")
    return table("Quality, each stage against the one before", heads, rows)


def _checks(checks: Sequence[Check]) -> str:
    rows = [(text(check.name), MARKS[check.verdict], text(_said(check))) for check in checks[:CHECKS]]
    return table("Checks", ("check", "", "figure"), rows)


def _said(check: Check) -> str:
    return "; ".join(filter(None, (check.figure, check.reason)))


def _of_menu(file: MadeFile) -> str:
    """What the menu says of a file without a measurement beside it."""
    said = {
        f"{text(key.replace('_', ' '))} {text(str(value))}"
        for entry in file.entries.values()
        for key, value in entry.quality.items()
        if value is not None
    }
    return f"<p>{', '.join(sorted(said))}</p>" if said else ""


def _chats(file: MadeFile) -> str:
    """A link to the chat for each name that the menu has."""
    several = len(file.offered) > 1
    return " ".join(
        link("./?" + query(model=entry), "Chat with it" + (f": {name(entry)}" if several else ""), "chat")
        for entry in file.entries
        if entry in file.offered
    )


def _start(file: MadeFile) -> str:
    """How to chat with a model that isn't in the menu of the app that runs."""
    if file.kind != "model" or (file.quality and file.quality.verdict == "fail"):
        return ""
    if file.entries:
        return "<p>It was made since the app was started: start it again to have it in the menu.</p>"
    line = f"python app.py --model {shlex.quote(f'models/{file.file}')}"
    return f"<p>It isn't in the menu. To chat with it:</p>{command(line)}"
