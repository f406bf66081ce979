"""What the study of marketing messages measured, as tables and pictures; all of it from its JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from chat.sms import logit
from core.sms import FIELDS
from train.tasks.sms import calibration_bins

Content = Mapping[str, Any]
NOTHING = dict.fromkeys(FIELDS, "none")


def cells(content: Content, kind: str) -> dict[str, Any]:
    """The cells whose keys begin with `kind`/, by the rest of the key."""
    found = content["cells"].items()
    return {key.removeprefix(f"{kind}/"): cell for key, cell in found if key.startswith(f"{kind}/")}


def extractors(content: Content) -> dict[str, dict[str, Any]]:
    """By extractor: `fields` (precision and recall of each, None where nothing counts), `seconds` a message,
    `messages`, and how many replies didn't fill the schema (`unfilled`)."""
    rules, asked = content["cells"]["rules"], cells(content, "asked")
    replies = [asked[str(number)] for number in range(len(asked))]
    unfilled = sum(reply["features"] is None for reply in replies)
    read = [reply["features"] or NOTHING for reply in replies]
    found = {"rules": _extractor(rules["truth"], rules["found"], rules["seconds"], 0)}
    if not replies:
        return found
    few = len(replies)
    truth, by_rule, unsure = (rules[name][:few] for name in ("truth", "found", "unsure"))
    found["rules, the same messages"] = _extractor(truth, by_rule, rules["seconds"], 0)
    seconds = [reply["seconds"] for reply in replies]
    found["model"] = _extractor(truth, read, statistics.fmean(seconds), unfilled)
    mixed = [
        row | {name: told["features"][name] for name in doubts} if told["features"] else row
        for row, told, doubts in zip(by_rule, replies, unsure, strict=True)
    ]
    needed = [second if doubts else 0.0 for second, doubts in zip(seconds, unsure, strict=True)]
    failed = sum(
        bool(doubts) and told["features"] is None for told, doubts in zip(replies, unsure, strict=True)
    )
    found["hybrid"] = _extractor(truth, mixed, rules["seconds"] + statistics.fmean(needed), failed)
    found["hybrid"]["asked"] = sum(map(bool, unsure))
    return found


def _extractor(truth: Sequence[Any], found: Sequence[Any], seconds: float, unfilled: int) -> dict[str, Any]:
    fields = {name: precision_recall([t[name] for t in truth], [f[name] for f in found]) for name in FIELDS}
    return {"fields": fields, "seconds": seconds, "messages": len(truth), "unfilled": unfilled}


def precision_recall(truth: Sequence[Any], found: Sequence[Any]) -> tuple[float | None, float | None]:
    """Of a field that may be absent (none, 0, False): a value counts as found only if it is the right one."""
    absent = ("none", 0, False)
    right = sum(t == f and t not in absent for t, f in zip(truth, found, strict=True))
    said, there = (sum(value not in absent for value in side) for side in (found, truth))
    return right / said if said else None, right / there if there else None


FIGURES = ("auc", "log_loss", "brier", "calibration_error", "expected_log_loss", "expected_brier")
COSTS = ("loss", "tokens_per_s", "memory_gb")
HEADS = {"loss": "last training loss, nats", "tokens_per_s": "tokens/s", "memory_gb": "memory, GB"}


def arms(content: Content) -> dict[str, dict[str, list[float]]]:
    """By arm and figure, the values of the seeds; with `reached`, the share of the way from the mean rate of
    all rows to the generator's truth, by expected log-loss."""
    found: dict[str, dict[str, list[float]]] = {}

    def add(name: str, cell: Mapping[str, Any], seed: str) -> None:
        base = content["cells"][f"baselines/{seed}"]
        truth = base["the generator's truth"]["expected_log_loss"]
        mean = next(s["expected_log_loss"] for n, s in reversed(base.items()) if n.startswith("mean rate"))
        values = {key: cell[key] for key in (*FIGURES, *COSTS) if cell.get(key) is not None}
        if "loss" in values:
            values["loss"] = values["loss"][-1]
        values["reached"] = (mean - cell["expected_log_loss"]) / (mean - truth)
        for key, value in values.items():
            found.setdefault(name, {}).setdefault(key, []).append(value)

    for seed, baselines in cells(content, "baselines").items():
        for name, cell in baselines.items():
            add(name, cell, seed)
    for seed, cell in cells(content, "chat").items():
        add("untuned, through the chat", cell, seed)
    for key, cell in cells(content, "tuned").items():
        name, _, seed = key.rpartition("/")
        add(f"LoRA, {name}", cell, seed)
    return found


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
        "model": content["settings"]["model"],
        "rows": len(told),
        "slope": float(line.coef_[0, 0]),
        "intercept": float(line.intercept_[0]),
        "bins": [list(values) for values in calibration_bins(told, likely).values()],
    }


def _spread(values: Sequence[float] | None, digits: int = 3) -> str:
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def markdown(content: Content) -> str:
    """The tables, with what they mean."""
    settings, made = content["settings"], content["cells"]["made"]
    parts = [
        "All messages are **synthetic**, and so is what they sold: a figure says how much of a known "
        "function is found, nothing about real campaigns.",
        f"Made on {made['date']} by `{made['command']}`, on {made['device']} (torch {made['torch']}): each "
        f"model was tuned on {settings['train']} rows and tested on {settings['test']} of other campaigns, a "
        "draw and a split for each of the seeds 1, 2 and 3.",
        "## Features",
        _features(extractors(content)),
        "![Precision and recall by field and extractor](features.png)",
        "## Likelihood of a purchase",
        _likelihoods(arms(content)),
        "![The share of what can be known that each arm reaches](reached.png)",
        "![Calibration of each arm, all seeds together](calibration.png)",
        _findings(content),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _features(found: Mapping[str, Any]) -> str:
    names = list(found)
    lines = ["| precision / recall | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]

    def row(name: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cell(found[each]) for each in names) + " |")

    def pair(values: Sequence[float | None]) -> str:
        return " / ".join("-" if value is None else f"{value:.2f}" for value in values)

    def field_cell(field: str, extractor: Mapping[str, Any]) -> str:
        return pair(extractor["fields"][field])

    for field in FIELDS:
        row(field.replace("_", " "), partial(field_cell, field))
    row("messages", lambda extractor: str(extractor["messages"]))
    row("seconds a message", lambda extractor: f"{extractor['seconds']:.2g}")
    row("schema not filled", lambda extractor: str(extractor["unfilled"]))
    row("messages that the model was asked", lambda e: str(e.get("asked", "")))
    return "\n".join(lines)


def _likelihoods(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    columns = ("reached", *FIGURES, *COSTS)
    lines = ["| arm | seeds | " + " | ".join(HEADS.get(c, c.replace("_", " ")) for c in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for name, figures in found.items():
        digits = {"tokens_per_s": 0, "memory_gb": 2, "reached": 2}
        shown = [_spread(figures.get(column), digits.get(column, 3)) for column in columns]
        lines.append(f"| {name} | {len(figures['reached'])} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _findings(content: Content) -> str:
    """What is within the spread of the seeds, and what isn't."""
    found, lines = arms(content), []
    plain = {name: values["reached"] for name, values in found.items() if name.startswith("LoRA")}
    reference = plain.get("LoRA, 16 bit")
    if reference and len(reference) < 2:
        return "The tuned arms have one seed each: no difference among them can be told from chance."
    for name, values in plain.items():
        if not reference or name == "LoRA, 16 bit" or len(values) < 2 or len(reference) < 2:
            continue
        gap = statistics.fmean(values) - statistics.fmean(reference)
        spread = max(statistics.stdev(values), statistics.stdev(reference))
        verdict = (
            "within the spread of the seeds" if abs(gap) <= spread else "more than the spread of the seeds"
        )
        lines.append(
            f"- {name} against 16 bit: {gap:+.2f} of what can be known, which is {verdict} ({spread:.2f})."
        )
    return "\n".join(lines)
