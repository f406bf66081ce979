"""What the study of marketing messages measured, as tables and sentences; all of it from its JSON."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from bench.comparison import SEEDS, apart, judged, section, spread
from bench.full_size import training_table
from core.sms import FIELDS, Features, logit
from core.sms_rules import hybrid
from train.tasks.sms_calibration import calibration_bins
from train.tasks.sms_gold import found_of

Content = Mapping[str, Any]
FIGURES = ("auc", "log_loss", "brier", "calibration_error", "expected_log_loss", "expected_brier")
COSTS = ("loss", "tokens_per_s", "memory_gb")
HEADS = {"loss": "last training loss, nats", "tokens_per_s": "tokens/s", "memory_gb": "memory, GB"}
FORMS = {"tokens_per_s": "{:,.0f}", "memory_gb": "{:.2f}", "reached": "{:z.2f}"}
ELSEWHERE = r" --(?:out|minutes|workers)[ =](?:'[^']*'|\S+)"  # options that say nothing of the figures
PAGE = Path(__file__).with_name("sms_page.md")
BITS_TRIED = 3  # 16, 8 and 4, each without checkpointing and with it
CHAT, TRUTH = "untuned, through the chat", "the generator's truth"


def cells(content: Content, kind: str) -> dict[str, Any]:
    """The cells whose keys begin with `kind`/, by the rest of the key."""
    found = content["cells"].items()
    return {key.removeprefix(f"{kind}/"): cell for key, cell in found if key.startswith(f"{kind}/")}


def best_rate(content: Content) -> float:
    """The learning rate of the tuned arms: of several, that with the lowest log-loss on other campaigns."""
    looks = {float(rate): cell["log_loss"] for rate, cell in cells(content, "rate").items()}
    return min(looks, key=looks.__getitem__) if looks else float(content["settings"]["rates"][0])


def extractors(content: Content) -> dict[str, dict[str, Any]]:
    """By extractor: `fields` (precision and recall of each, None where nothing counts), `seconds` a message,
    `messages`, and how many replies didn't fill the schema (`unfilled`)."""
    rules, asked = content["cells"].get("rules"), cells(content, "asked")
    if not rules:
        return {}
    replies = {int(number): asked[number] for number in sorted(asked, key=int)}
    found = {"rules": _extractor(rules["truth"], rules["found"], rules["seconds"], 0)}
    if not replies:
        return found
    truth, by_rule, unsure = ([rules[name][n] for n in replies] for name in ("truth", "found", "unsure"))
    read = [reply["features"] for reply in replies.values()]
    unfilled = read.count(None)
    found["rules, the same messages"] = _extractor(truth, by_rule, rules["seconds"], 0)
    seconds = [reply["seconds"] for reply in replies.values()]
    found["model"] = _extractor(truth, read, statistics.fmean(seconds), unfilled)
    mixed = [
        hybrid(Features(**found), doubts, told and Features(**told)).model_dump()
        for found, doubts, told in zip(by_rule, unsure, read, strict=True)
    ]
    needed = [second if doubts else 0.0 for second, doubts in zip(seconds, unsure, strict=True)]
    failed = sum(bool(doubts) and told is None for doubts, told in zip(unsure, read, strict=True))
    found["hybrid"] = _extractor(truth, mixed, rules["seconds"] + statistics.fmean(needed), failed)
    found["hybrid"]["asked"] = sum(map(bool, unsure))
    return found


def _extractor(truth: Sequence[Any], found: Sequence[Any], seconds: float, unfilled: int) -> dict[str, Any]:
    known, said = ([row and Features(**row) for row in side] for side in (truth, found))
    return {"fields": found_of(known, said), "seconds": seconds, "messages": len(truth), "unfilled": unfilled}


def arms(content: Content) -> dict[str, dict[str, list[float]]]:
    """By arm and figure, the values of the seeds; with `reached`, the share of the way from the mean rate of
    all rows to the generator's truth, by expected log-loss. Speed and memory are the first seed's, which was
    alone."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, seed, cell in _named(content):
        base = content["cells"][f"baselines/{seed}"]
        truth = base[TRUTH]["expected_log_loss"]
        mean = next(s["expected_log_loss"] for n, s in reversed(base.items()) if n.startswith("mean rate"))
        values = {key: cell[key] for key in FIGURES if cell.get(key) is not None}
        values["reached"] = (mean - cell["expected_log_loss"]) / (mean - truth)
        if "loss" in cell:
            values["loss"] = cell["loss"][-1]
        if seed == str(SEEDS[0]):
            values |= {key: cell[key] for key in COSTS[1:] if cell.get(key) is not None}
        for key, value in values.items():
            found.setdefault(name, {}).setdefault(key, []).append(value)
    return found


def _named(content: Content) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each cell with the name of its arm and its seed: baselines, the chat, then what was tuned."""
    for seed, baselines in cells(content, "baselines").items():
        yield from ((name, seed, cell) for name, cell in baselines.items())
    yield from ((CHAT, seed, cell) for seed, cell in cells(content, "chat").items())
    for key, cell in cells(content, "tuned").items():
        name, _, seed = key.rpartition("/")
        yield f"LoRA, {name}", seed, cell


def calibration(content: Content) -> dict[str, Any]:
    """How the chat's model's likelihoods relate to what happened: bins, and a line in log-odds (Platt)."""
    found = cells(content, "chat").values()
    likely = [p for cell in found for p in cell["likely"]]
    told = [y for cell in found for y in cell["converted"]]
    if len(set(told)) < 2:
        return {}
    line = LogisticRegression(C=1.0).fit(np.array([[logit(p)] for p in likely]), told)
    return {
        "synthetic": True,
        "model": content["cells"]["chat_made"]["model"],
        "rows": len(told),
        "slope": float(line.coef_[0, 0]),
        "intercept": float(line.intercept_[0]),
        "bins": [list(values) for values in calibration_bins(told, likely).values()],
    }


def markdown(content: Content, pictures: str = "") -> str:
    """The page; `pictures` is what their names begin with."""
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        made=_made(content),
        answer=_answer(content),
        features=_features(extractors(content)),
        likelihoods=_likelihoods(content),
        pictures=pictures,
        larger="; Mistral-7B's are below" if cells(content, "full") else "",
    )
    return page + _full_size(content)


def _answer(content: Content) -> str:
    """The answer in a sentence; "" before a model is tuned."""
    reached = {name: figures["reached"] for name, figures in arms(content).items()}
    tuned = [v for name, v in reached.items() if name.startswith("LoRA, ") and "checkpointing" not in name]
    rows = f", {content['settings']['train']} rows"
    plain = {name: v for name, v in reached.items() if name.endswith(rows)}
    if not tuned or not plain:
        return ""
    best, form = max(plain, key=lambda name: statistics.fmean(plain[name])), FORMS["reached"]
    means, seeds = [statistics.fmean(values) for values in tuned], [v for values in tuned for v in values]
    found, range_ = (f"{form.format(min(of))} to {form.format(max(of))}" for of in (means, seeds))
    untuned = f" The untuned model finds {spread(reached[CHAT], form)}." if CHAT in reached else ""
    return (
        "**In short: of what can be known of a purchase (0 is the mean rate, 1 the generator's truth), the "
        f"tuned models find {found} ({range_} over their seeds), and the best baseline of as many rows, "
        f"{best.removesuffix(rows)}, {spread(plain[best], form)}; these ranges "
        f"{'do not overlap' if apart(seeds, plain[best]) else 'overlap'}.{untuned}**\n\n"
    )


def _made(content: Content) -> str:
    plan, found = content["settings"], content["cells"]
    said = []
    if made := found.get("made"):
        best = f"{best_rate(content):g}"
        looks = {float(rate): cell["log_loss"] for rate, cell in cells(content, "rate").items()}
        rates = ", ".join(f"{loss:.3f} at {rate:g}" for rate, loss in sorted(looks.items()))
        chosen = f", the best of several on campaigns that aren't tested (log-loss {rates})" if looks else ""
        said.append(
            f"Tuned and compared on {made['date']} by `{_shown(made['command'])}`, on {made['device']} "
            f"(torch {made['torch']}): on {plan['train']} rows for {plan['epochs']:g} epochs at a learning "
            f"rate of {best}{chosen}, and tested on {plan['test']} rows of other campaigns, a draw and a "
            "split for each seed."
        )
    if asked := found.get("chat_made"):
        said.append(
            f"{asked['model']} was asked through the chat on {asked['date']}, on {asked['device']}, by "
            f"`{_shown(asked['command'])}`."
        )
    return " ".join(said)


def _shown(command: str) -> str:
    """Without the folder and the time that somebody had."""
    return re.sub(ELSEWHERE, "", command)


def _features(found: Mapping[str, Any]) -> str:
    if not found:
        return "Not measured yet."

    def pair(values: Sequence[float | None]) -> str:
        return " / ".join("-" if value is None else f"{value:.2f}" for value in values)

    rows = [[f.replace("_", " "), *(pair(e["fields"][f]) for e in found.values())] for f in FIELDS]
    rows += [
        ["messages", *(str(e["messages"]) for e in found.values())],
        ["seconds a message", *(f"{e['seconds']:.2g}" for e in found.values())],
        ["schema not filled", *(str(e["unfilled"]) for e in found.values())],
        ["messages that the model was asked", *(str(e.get("asked", "")) for e in found.values())],
    ]
    return section(["precision / recall", *found], rows)


def _likelihoods(content: Content) -> str:
    found, columns = arms(content), ("reached", *FIGURES, *COSTS)
    head = ["arm", "seeds", *(HEADS.get(column, column.replace("_", " ")) for column in columns)]
    rows = []
    for name, figures in found.items():
        shown = [spread(figures.get(c, []), FORMS.get(c, "{:.3f}"), nothing="") for c in columns]
        rows.append([name, str(len(figures["reached"])), *shown])
    return section(head, rows, [*_findings(found), *_lacking(content)])


def _lacking(content: Content) -> Iterator[str]:
    """What isn't there yet of the tuned arms."""
    there, plan = len(cells(content, "tuned")), content["settings"]
    planned = BITS_TRIED * (len(SEEDS) + plan["checkpointed_seeds"])
    if there < planned:
        yield f"\n{there} of {planned} runs were made so far, and the same command goes on with the others."


def _findings(found: Mapping[str, Mapping[str, list[float]]]) -> Iterator[str]:
    """Each tuned arm against that of 16 bit, and that against what needs no language model."""
    reached = {name: figures["reached"] for name, figures in found.items()}
    reference = reached.get("LoRA, 16 bit")
    if not reference:
        return
    for name, values in reached.items():
        if name in ("LoRA, 16 bit", TRUTH) or "checkpointing" in name:  # which changes only what it costs
            continue
        gap = statistics.fmean(reference) - statistics.fmean(values)
        yield f"- LoRA, 16 bit reaches {gap:+z.2f} against {name}: {judged(reference, values)}."


def _full_size(content: Content) -> str:
    if not (found := cells(content, "full")):
        return ""
    return (
        "\n## Mistral-7B: memory and speed\n\nThe recipe `mistral-7b-sms` on the same GPU. **The weights are "
        "random, not the real ones**: speed and memory don't depend on them, and nothing is said of "
        f"likelihoods. It trains on documents of random tokens. Measured are {len(found)} of "
        f"{2 * BITS_TRIED} arms.\n\n{training_table(found)}\n"
    )
