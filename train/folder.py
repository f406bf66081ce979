"""A run's folder, outputs/<name>/: who may write to it, and the files that the conversion reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from core.files import write_whole
from train.errors import TrainError
from train.example import Encoded
from train.recipe import Recipe, parse, read_yaml

RECIPE, METRICS, PROMPTS, MANIFEST, BEFORE = (
    "recipe.yaml",
    "metrics.jsonl",
    "prompts.jsonl",
    "manifest.json",
    "before.json",
)
KEPT_ROWS = 48  # of each split, for the conversion


@contextmanager
def claimed(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Have the folder for this run alone. Raises TrainError if it is another's, or in use.

    A run that was refused before its first step left nothing to keep: it may begin again, corrected.
    """
    if (folder / RECIPE).is_file() and (folder / BEFORE).is_file():
        before = parse(read_yaml(folder / RECIPE), folder / RECIPE)
        if not resume:
            raise TrainError(
                f"{folder} holds a run already; go on with it: --resume, or name this one: --name"
            )
        if before.config_hash() != recipe.config_hash():
            raise TrainError(
                f"{folder} was begun with another recipe ({_differences(before, recipe)}); --name"
            )
    elif not (folder / RECIPE).is_file() and any(path.name != ".lock" for path in folder.glob("*")):
        raise TrainError(f"{folder} is in use for something else; give this run another name: --name")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            write_whole(folder / RECIPE, dump(recipe))
            yield
    except Timeout:
        raise TrainError(f"another program is training in {folder} right now") from None


def dump(recipe: Recipe) -> str:
    """A recipe as YAML, without what is left at its default."""
    content = recipe.model_dump(by_alias=True, exclude_defaults=True)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def _differences(one: Recipe, other: Recipe) -> str:
    old, new = (recipe.model_dump(by_alias=True, exclude={"name", "description"}) for recipe in (one, other))
    found = []
    for section, values in new.items():
        if isinstance(values, dict) and isinstance(old[section], dict):
            found += [f"{section}.{k}: {old[section][k]!r}" for k in values if values[k] != old[section][k]]
        elif values != old[section]:
            found.append(section)
    return ", ".join(found[:5])


def keep_metrics_until(folder: Path, step: int) -> None:
    """Drop the lines of steps that a kill took back."""
    kept = [line for line in read_metrics(folder) if line["step"] <= step]
    write_whole(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Add one line."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines; one that a kill cut short is left out."""
    found = []
    if (folder / METRICS).is_file():
        for line in (folder / METRICS).read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def write_prompts(folder: Path, train: Sequence[Encoded], test: Sequence[Encoded]) -> None:
    """Keep some rows for the conversion, which checks the chat's ids against them and measures with them.

    Plain texts are no chats: without a row the conversion uses the project's own.
    """
    lines = []
    for split, rows in (("train", train), ("test", test)):
        chats = [row for row in rows if row.messages]
        for row in chats[:: max(1, len(chats) // KEPT_ROWS)][:KEPT_ROWS]:
            lines.append(json.dumps(asdict(row) | {"split": split}) + "\n")
    if lines:
        write_whole(folder / PROMPTS, "".join(lines))


def write_json(path: Path, content: Any) -> None:
    """Write an object, whole."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one; None if it isn't there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
