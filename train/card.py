"""The model card of a run: what was trained, on what, how it went, and what to do with it next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from core.command import ROOT
from core.files import write_whole
from core.sms import BASELINES, FIGURES, is_of_baseline
from train.recipe import Recipe
from train.sections import Lora
from train.tasks.sms_calibration import BINS, bins_in

LOSSES = {
    "base16": "untouched base, 16 bit",
    "start": "before the first step",
    "best": "best",
    "last": "at the end",
}
FORECAST = {"memory_gb": "peak memory, GB", "tokens_per_s": "tokens/s", "minutes": "minutes"}
COUNTED = {
    "left_out": "rows left out",
    "changed": "rows changed",
    "noticed": "rows to know of",
    "not_used": "rows with what isn't used",
}
TRAINED = {
    "device": "device",
    "trainable_parameters": "trainable parameters",
    "steps": "steps",
    "tokens": "tokens",
    "seed": "seed",
    "config_hash": "hash of the recipe",
}


def write_card(
    path: Path,
    recipe: Recipe,
    manifest: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, float]],
    waived: Mapping[str, str],
) -> None:
    """Write a run's README.md, with the hub's front matter. What isn't known is left out.

    `metrics` are the lines of metrics.jsonl; `scores` holds figures under `before` and `after`; `waived`
    are the reasons of the checks that were passed over, by their names.
    """
    name = recipe.name or path.parent.name
    checks = [f"- `{check}`: {reason}" for check, reason in waived.items()]
    sections = {
        "What was trained": table(("", ""), _trained(recipe, manifest)),
        "Loss on the validation rows": table(("", unit_of(recipe)), _losses(manifest, metrics)),
        "Scores on the test rows": table(("", "before", "after"), _scores(scores)),
        "Beside what needs no language model": _beside(scores),
        "Calibration": table(("likelihood", "said", "happened", "rows"), _calibration(scores)),
        "Forecast and actual": table(("", "forecast", "actual"), _forecast(manifest)),
        "Checks that were waived": "\n".join(checks),
        "Licences": _licences(recipe),
        "Next": _next(path.resolve().parent, name),
    }
    sections["Loss on the validation rows"] += "\n\n![Loss over the steps](loss.png)"
    if sections["Calibration"]:
        sections["Calibration"] += "\n\n![What was said and what happened](calibration.png)"
    sections["Scores on the test rows"] += "\n\nReplies to the same prompts are in [samples.md](samples.md)."
    parts = [_front_matter(recipe), f"# {name}", recipe.description, _synthetic(recipe)]
    parts += [f"## {heading}\n\n{text.strip(chr(10))}" for heading, text in sections.items() if text]
    write_whole(path, "\n\n".join(filter(None, parts)) + "\n")


def unit_of(recipe: Recipe) -> str:
    """What the loss is of."""
    return "a pair" if recipe.dpo else "nats a token"


def _next(folder: Path, name: str) -> str:
    """What to do next, typed in the repository; a run in another outputs/ says whose."""
    root = folder.parents[1] if folder.parent.name == "outputs" else ROOT
    model = f"{name} Q5_K_M"
    there = "" if root == ROOT else f" --root {quote(str(root))}"
    if there:  # another root has a menu of its own
        model = str(root / "models" / f"{name}-Q5_K_M.gguf")
    return (
        f"    python convert/to_gguf.py {quote(name)} --quant q5{there}\n"
        f"    python app.py --model {quote(model)}"
    )


def _front_matter(recipe: Recipe) -> str:
    licence = recipe.model.license
    # The hub knows identifiers only; anything else is "other" with a name.
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence.lower())
    head: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora"]}
    head |= {"license": licence.lower()} if known else {"license": "other", "license_name": licence}
    if _is_hub_name(recipe.model.base_model):
        head["base_model"] = recipe.model.base_model
    if _is_hub_name(recipe.data.path):
        head["datasets"] = [recipe.data.path]
    return f"---\n{yaml.safe_dump(head, allow_unicode=True)}---"


def _is_hub_name(text: str) -> bool:
    """`owner/name`, and neither a file nor a folder here."""
    file = Path(text)
    named = re.fullmatch(r"\w[\w.-]*/[\w.-]+", text) and not file.suffix.startswith(
        (".json", ".csv", ".parq")
    )
    return bool(named) and not file.exists()


def _shown(text: str) -> str:
    """A hub name as it is; of a path its name alone: where it lies on this machine is nobody's business."""
    return text if _is_hub_name(text) else Path(text).name


def is_synthetic(recipe: Recipe) -> bool:
    """Whether the data are called so."""
    return "synthetic" in f"{recipe.data.license} {Path(recipe.data.path).name}".lower()


def _synthetic(recipe: Recipe) -> str:
    if not is_synthetic(recipe):
        return ""
    return (
        "**The data is synthetic**: a program made it up by a known rule. The scores say how much of that"
        " rule was learnt, and nothing about real messages or people."
    )


def _trained(recipe: Recipe, manifest: Mapping[str, Any]) -> list[Row]:
    model, data, lora = recipe.model, recipe.data, recipe.lora
    base = _shown(model.base_model) if model.base_model else f"{model.package}: {model.gguf_file}"
    width = "4 bit (GPTQ)" if recipe.gptq else "16 bit"
    if recipe.bnb:
        width = f"4 bit ({recipe.bnb.bnb_4bit_quant_type})" if recipe.bnb.load_in_4bit else "8 bit"
    facts = manifest.get("data", {})
    at = f" at {model.revision}" if model.revision else ""
    rows: list[Row] = [("base", f"{base}{at}, {width}"), ("adapter", form(lora))]
    if recipe.precision == "fp8":
        said = "products with the base's matrices in FP8 (e4m3), forward and backward"
        if "fp8_steps" in manifest:
            said += f", in the first {manifest['fp8_steps']:,} of {manifest['steps']:,} steps"
        rows.append(("precision", said))
    if model.adapter:
        folder = Path(model.adapter)
        rows.append(("goes on from", folder.parent.name if folder.name == "adapter" else folder.name))
    if recipe.dpo:
        reference = "that adapter as it was" if model.adapter else "the base"
        losses = " and ".join(recipe.dpo.loss_type)
        rows.append(("preferences", f"DPO, loss {losses}, beta {recipe.dpo.beta:g}, from {reference}"))
    parts = facts.get("rows", {})  # of each split
    counts = "".join(f", {count:,} {split}" for split, count in parts.items())
    rows.append(("data", _shown(data.path) + counts + (" rows" if counts else "")))
    for part, label in COUNTED.items():
        first = facts.get("first", {})
        numbers = {reason: count for reason, count in facts.get(part, {}).items() if count}
        shown = (
            f"{count:,} {reason}" + (f" ({first[reason]})" if reason in first else "")
            for reason, count in numbers.items()
        )
        if numbers:
            rows.append((label, "; ".join(shown)))
    if "sha256" in facts:
        rows.append(("SHA-256 of the data", str(facts["sha256"])))
    rows += [
        (label, _number(manifest[key])) for key, label in TRAINED.items() if manifest.get(key) is not None
    ]
    if manifest.get("wall_seconds") is not None:
        rows.append(("time", f"{manifest['wall_seconds'] / 60:.1f} minutes"))
    versions = manifest.get("versions", {})
    if versions:
        rows.append(("versions", ", ".join(f"{library} {version}" for library, version in versions.items())))
    return rows


def form(lora: Lora) -> str:
    """An adapter's form in a few words."""
    kind = ("rsLoRA" if lora.use_rslora else "LoRA") + (" with DoRA" if lora.use_dora else "")
    return f"{kind}, r {lora.r}, alpha {lora.lora_alpha:g}"


def _losses(manifest: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[Row]:
    known = dict(manifest.get("eval_loss", {}))
    lines = [line for line in metrics if "eval_loss" in line]
    if lines:
        best = min(lines, key=lambda line: line["eval_loss"])
        found = {"start": lines[0], "best": best, "last": lines[-1]}
        known = {key: line["eval_loss"] for key, line in found.items()} | {"best_step": best["step"]} | known
    labels = LOSSES | ({"best": f"best, step {known['best_step']}"} if "best_step" in known else {})
    return [(label, f"{known[key]:.4f}") for key, label in labels.items() if known.get(key) is not None]


def _scores(scores: Mapping[str, Mapping[str, float]]) -> list[Row]:
    before, after = scores.get("before", {}), scores.get("after", {})
    names = [n for n in {**before, **after} if not n.startswith("bin_") and not is_of_baseline(n)]
    return [
        (_spaced(name), *(f"{side[name]:.4f}" if name in side else "" for side in (before, after)))
        for name in names
    ]


def _beside(scores: Mapping[str, Mapping[str, float]]) -> str:
    """The model before and after, and the baselines, by what is told of likelihoods."""
    before, after = scores.get("before", {}), scores.get("after", {})
    if not any(map(is_of_baseline, after)):
        return ""
    found = {"this model before": (before, ""), "this model after": (after, "")}
    found |= {label: (after, f"{name}_") for name, label in BASELINES.items()}
    columns = [figure for figure in FIGURES if any(score.endswith(figure) for score in after)]
    rows = [
        (label, *(f"{side[begins + f]:.4f}" if begins + f in side else "" for f in columns))
        for label, (side, begins) in found.items()
    ]
    return table(("", *map(_spaced, columns)), [row for row in rows if any(row[1:])])


def _calibration(scores: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """The bins after the training."""
    return [
        (f"{i / BINS:.1f} to {(i + 1) / BINS:.1f}", f"{said:.3f}", f"{was:.3f}", f"{rows}")
        for i, (said, was, rows) in bins_in(scores.get("after", {})).items()
    ]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _forecast(manifest: Mapping[str, Any]) -> list[Row]:
    sides = manifest.get("predicted", {}), manifest.get("actual", {})
    return [
        (label, *(_number(side[key]) if side.get(key) is not None else "" for side in sides))
        for key, label in FORECAST.items()
        if any(side.get(key) is not None for side in sides)
    ]


def _licences(recipe: Recipe) -> str:
    return (
        f"- base: {recipe.model.license}; its terms hold for this adapter too\n- data: {recipe.data.license}"
    )


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


Row = Sequence[str]


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return the table, or nothing where there are no rows."""
    lines = [" | ".join(map(_cell, row)) for row in [head, *rows]]
    lines.insert(1, " | ".join(["---"] * len(head)))
    return "\n".join(f"| {line} |" for line in lines) if rows else ""


def _cell(text: str) -> str:
    marked = re.sub(r"[\\`*_{}\[\]<>|~$#!]", r"\\\g<0>", text.strip("\r\n").replace("&", "&amp;"))
    lines = [re.sub(r"^ +", lambda found: "&nbsp;" * len(found[0]), line) for line in marked.splitlines()]
    return "<br>".join(lines).replace("\t", "&nbsp;" * 4)
