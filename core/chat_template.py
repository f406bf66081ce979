"""The chat template among a tokenizer's files: one rule for training and conversion.

A folder can hold it in three places. transformers' tokenizers read chat_template.jinja before
tokenizer_config.json (5.23, tokenization_utils_base.py, `_from_pretrained`), its processors also
chat_template.json; llama.cpp's converter reads tokenizer_config.json first, where even a null wins (gguf-py's
vocab.py, `SpecialVocab`). So whoever writes a folder writes it to one place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE, CONFIG, PROCESSOR = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
FOLDER = "additional_chat_templates"
DEFAULT = "default"


@dataclass(frozen=True)
class ChatTemplate:
    """`text` is empty where there is none; `others` are those with a name of their own, for tools say."""

    text: str = ""
    found_in: Path | None = None
    others: dict[str, str] = field(default_factory=dict)


def find_template(folders: Iterable[Path]) -> ChatTemplate:
    """Return the template of the first folder that has one.

    An empty template, a null and a list without a default count as none. Raises OSError and ValueError for a
    file that can't be read.
    """
    for folder in folders:
        for path, given in _places(folder):
            named = _named(given)
            if text := named.pop(DEFAULT, ""):
                return ChatTemplate(text, path, named)
    return ChatTemplate()


def write_template(template: ChatTemplate, folder: Path) -> None:
    """Write it where transformers and llama.cpp's converter read it, if tokenizer_config.json has none."""
    if not template.text:
        return
    (folder / FILE).write_text(template.text, encoding="utf-8", newline="")
    for name, text in template.others.items():
        if re.fullmatch(r"[\w-]+", name):  # it becomes the name of a file
            (folder / FOLDER).mkdir(exist_ok=True)
            (folder / FOLDER / f"{name}.jinja").write_text(text, encoding="utf-8", newline="")


def _places(folder: Path) -> Iterable[tuple[Path, Any]]:
    """The places of a folder in the order in which they count."""
    others = {path.stem: _text(path) for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / FILE).is_file():
        yield folder / FILE, {**others, DEFAULT: _text(folder / FILE)}
    elif others:
        yield folder / FOLDER / f"{DEFAULT}.jinja", others
    for name in (CONFIG, PROCESSOR):
        if (folder / name).is_file():
            content = json.loads(_text(folder / name))
            yield folder / name, content.get("chat_template") if isinstance(content, dict) else None


def _named(given: Any) -> dict[str, str]:
    """The templates by name: of one text, of an object, or of transformers' list of name and template."""
    if isinstance(given, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in given if isinstance(entry, dict)]
    elif isinstance(given, dict):
        pairs = list(given.items())
    else:
        pairs = [(DEFAULT, given)]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
