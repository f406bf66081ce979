"""What the files of a run hold, typed: manifest, settings, samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from core.errors import ChatError

SAMPLES = 8
SETTINGS = 80  # of a recipe
ITEMS = 12  # of a list in it

# What a cell of samples.md has in place of a line break, a blank, an ampersand and a sign of Markdown's.
_MARKED = re.compile(r"(\\.|\||<br>|&nbsp;|&amp;)")
_MEANT = {"<br>": "\n", "&nbsp;": " ", "&amp;": "&"}

Count = Field(0, ge=0, le=10**15)


class Part(BaseModel):
    """Of a JSON file: typed strictly, and whatever else is in it left alone."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Speed(Part):
    """A forecast, or what was measured."""

    memory_gb: FiniteFloat | None = None
    tokens_per_s: FiniteFloat | None = None
    minutes: FiniteFloat | None = None


class Losses(Part):
    """On the validation rows."""

    base16: FiniteFloat | None = None
    start: FiniteFloat | None = None
    best: FiniteFloat | None = None
    best_step: int | None = Field(None, ge=0, le=10**15)
    last: FiniteFloat | None = None


class Scores(Part):
    """On the test rows, by name."""

    before: dict[str, FiniteFloat | None] = Field({})
    after: dict[str, FiniteFloat | None] = Field({})


class Base(Part):
    base_model: str | None = None
    gguf_file: str | None = None


class Manifest(Part):
    """What is read of manifest.json, which a run writes at its end."""

    base: Base = Base()
    device: str = ""
    trainer: str = ""
    steps: int = Count
    tokens: int = Count
    trainable_parameters: int = Count
    parameters: int = Count
    stopped: str = ""
    wall_seconds: FiniteFloat | None = None
    predicted: Speed = Speed()
    actual: Speed = Speed()
    eval_loss: Losses = Losses()
    scores: Scores = Scores()


class Asked(Part):
    """What is read of before.json, which a run writes before its first step."""

    prompts: list[list[dict[str, Any]]] = Field([])
    replies: list[str] = Field([])


class Reached(Part):
    """What is read of a checkpoint."""

    max_steps: int = Count
    stopped: str = ""


@dataclass(frozen=True)
class Sample:
    """A prompt and its replies; `after` is None while the training goes on."""

    prompt: str
    before: str
    after: str | None


def last_name(text: str) -> str:
    """A path's last part; any other text as it is."""
    is_path = text.startswith(("/", "~", ".")) or re.match(r"[A-Za-z]:[\\/]", text)
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if is_path else text


def read_recipe(text: str) -> dict[str, str]:
    """The settings of a recipe, `section.key`, as they are written. Raises ChatError.

    Nothing is made of the values: a loader that follows YAML's merge keys can be kept busy for ever.
    """
    try:
        content = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ChatError(f"recipe.yaml is no YAML ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(content, dict):
        raise ChatError("recipe.yaml holds no recipe")
    found: dict[str, str] = {}
    for section, value in content.items():
        if isinstance(value, dict):
            found |= {f"{_plain(section)}.{_plain(key)}": _plain(each) for key, each in value.items()}
        else:
            found[_plain(section)] = _plain(value)
        if len(found) >= SETTINGS:
            break
    return dict(list(found.items())[:SETTINGS])


def _plain(value: Any) -> str:
    """A value as it is written; what is deeper than a list isn't followed: it may refer to itself."""
    if isinstance(value, str):
        return last_name(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(map(last_name, value[:ITEMS])) + (", …" if len(value) > ITEMS else "")
    return "…"


def asked_samples(asked: Asked) -> Sequence[Sample]:
    """What was asked before the training began, and not yet after it."""
    pairs = zip(asked.prompts, asked.replies, strict=False)
    return [Sample(_chat(chat), reply or "(empty)", None) for chat, reply in list(pairs)[:SAMPLES]]


def _chat(messages: list[dict[str, Any]]) -> str:
    turns = [(str(m.get("role", "")), str(m.get("content", ""))) for m in messages]
    return "\n".join(text if len(turns) == 1 else f"{role}: {text}" for role, text in turns)


def read_samples(text: str) -> Sequence[Sample]:
    """The rows of samples.md, its Markdown undone. Raises ChatError for another file."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    if "# Samples" not in text[:100] or (lines and lines[0] != "| prompt | before | after |"):
        raise ChatError("samples.md isn't the table that a run writes")
    rows = (_cells(line) for line in lines[2 : 2 + SAMPLES])
    return [Sample(*row) for row in rows if len(row) == 3]


def _cells(line: str) -> list[str]:
    cells = [""]
    for at, piece in enumerate(_MARKED.split(line)):
        if piece == "|":
            cells.append("")
        else:
            cells[-1] += _MEANT.get(piece, piece[1:]) if at % 2 else piece
    return [cell[1:-1] for cell in cells[1:-1]]  # each has a blank before it and one after
