"""What lies in models/: GGUF files, what a conversion measured of each, and their names in the menu."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat

from chat.found_files import checked, inside, read_object
from chat.run_files import Part
from core.entry import Entry
from core.errors import ChatError
from core.gguf_reader import model_name, part_names
from core.registry import Registry, load_registry

Kind = Literal["model", "adapter", "unverified", "partial"]
Verdict = Literal["ok", "warn", "fail", "n/a"]
ENDINGS: dict[str, Kind] = {".gguf": "model", ".unverified": "unverified", ".partial": "partial"}


class Score(Part):
    """Of a stage against the one before: nats a token, and shares."""

    loss: FiniteFloat | None = None
    perplexity: FiniteFloat | None = None
    kl_mean: FiniteFloat | None = None
    kl_99: FiniteFloat | None = None
    same_top: FiniteFloat | None = None


class Check(Part):
    name: str
    verdict: Verdict
    figure: str = ""
    reason: str = ""


class Quality(Part):
    """What a conversion writes beside a file that it verified."""

    verdict: Verdict | None = None
    file_type: str = ""
    base: str = ""
    run: str | None = None
    tested_on: str = ""
    scores: dict[str, Score] = Field({})
    checks: list[Check] = Field([])


@dataclass
class MadeFile:
    """A file in models/; of a split model its first part."""

    file: str
    kind: Kind
    size: int | None  # bytes of all parts; None where one is a link or isn't there
    changed: float
    quality: Quality | None = None
    entries: dict[str, Entry] = field(default_factory=dict)  # of it in models.json, by name
    offered: frozenset[str] = frozenset()  # those of them that the app's menu has
    notes: list[str] = field(default_factory=list)


def read_files(menu: Registry) -> tuple[list[MadeFile], list[str]]:
    """The files in models/, the newest first; and what else is to be said. Raises ChatError.

    `menu` is what the app offers: what was registered since it started isn't in it.
    """
    now = load_registry(menu.path)
    folder = menu.folder / "models"
    real = Path(os.path.realpath(folder))
    listed = {entry.name: entry for entry in inside(real)}
    by_file = _entries_by_file(now)
    adapters = {_place(now, adapter.path) for entry in now.entries.values() for adapter in entry.adapters}
    found = []
    for name, entry in listed.items():
        kind = ENDINGS.get(Path(name).suffix)
        first, *others = part_names(name)
        split = bool(others) and all(part in listed for part in (first, *others))
        if kind is None or entry.is_dir(follow_symlinks=False) or (split and name != first):
            continue
        place = os.path.abspath(folder / name)
        if kind == "model" and (place in adapters or name.endswith("-lora.gguf")):
            kind = "adapter"
        file = MadeFile(name, kind, *_size(real, [first, *others] if split else [name]))
        if file.size is None:
            file.notes.append(f"{name} is a link; where it leads isn't looked at")
        if kind == "model":
            file.entries = by_file.get(place, {})
            file.offered = frozenset(file.entries) & frozenset(menu.entries)
        file.quality = _quality(real, name, file.notes)
        found.append(file)
    notes = [f"{name}: {reason}" for name, reason in now.broken.items() if name not in menu.broken]
    return sorted(found, key=lambda file: file.changed, reverse=True), notes


def _entries_by_file(registry: Registry) -> Mapping[str, dict[str, Entry]]:
    found: dict[str, dict[str, Entry]] = {}
    for name, entry in registry.entries.items():
        if path := registry.locate(entry):
            found.setdefault(os.path.abspath(path), {})[name] = entry
    return found


def _place(registry: Registry, path: str) -> str:
    return os.path.abspath(registry.folder / os.path.expanduser(path))


def _size(folder: Path, names: list[str]) -> tuple[int | None, float]:
    """Bytes of these files, None if one of them is no plain file; and when the last one was written."""
    size: int | None = 0
    changed = 0.0
    for name in names:
        try:
            found = os.lstat(folder / name)
        except OSError:
            return None, changed
        changed = max(changed, found.st_mtime)
        size = size + found.st_size if size is not None and stat.S_ISREG(found.st_mode) else None
    return size, changed


def _quality(folder: Path, name: str, notes: list[str]) -> Quality | None:
    """What was measured of a file; None where nothing was."""
    beside = f"{name}.json" if name.endswith(".unverified") else f"{model_name(name)}.quality.json"
    try:
        return checked(Quality, read_object(folder / beside), beside, notes)
    except FileNotFoundError:
        return None
    except ChatError as error:
        notes.append(str(error))
        return None
