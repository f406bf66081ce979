"""Reads and checks the models that the app offers: `models.json` comes with the project and is never written,
`models/models.json` is what conversions made here, and wins where both have a name.

A bad entry is set aside with a reason; it never stops the app. core/entry.py has the schema.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib.util
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from core.entry import Entry, Source, hub_source, parse_entry, shown
from core.errors import ChatError
from core.files import write_json
from core.gguf_model import read_sizes
from core.gguf_reader import first_part, missing_part, model_size, part_names
from core.machine import human_size, verdict

__all__ = ["Entry", "Registry", "Source", "add", "check_extensible", "hub_source", "load_registry", "menu"]

MADE = Path("models", "models.json")  # beside the project's own


@dataclass(frozen=True)
class Registry:
    """The good entries in the order of the files, the first being the default; and why others are left out.

    `broken` has reasons by the names of entries, and of files that can't be read.
    """

    path: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where relative paths begin."""
        return self.path.parent

    def locate(self, entry: Entry) -> Path | None:
        """Return the first source's file that is on this disk; of a split model, the first part if all are.

        Never asks the network.
        """
        places = map(self._place, entry.sources)
        return next((first for place in places if place and (first := first_part(place))), None)

    def missing(self, entry: Entry) -> str:
        """Return why an entry can be neither loaded nor downloaded; empty if it can."""
        for adapter in entry.adapters:
            if not (self.folder / adapter.path).is_file():
                return f"its adapter {adapter.path!r} is not on this disk"
        if hub_source(entry) or self.locate(entry):
            return ""
        incomplete = (missing_part(place) for source in entry.sources if (place := self._place(source)))
        reason = next(filter(None, incomplete), "")
        return reason or f"not on this disk: {', '.join(map(str, entry.sources))}"

    def _place(self, source: Source) -> Path | None:
        """Where the file of `source` is or would be, some of its parts perhaps; None where none can be."""
        if source.path:
            return self.folder / os.path.expanduser(source.path)
        assert source.filename
        if source.package:
            # Found, not imported: a package may need others that aren't here, and importing runs its code.
            try:
                spec = importlib.util.find_spec(source.package)
            except ValueError:  # "__main__" and the like
                return None
            folders = spec.submodule_search_locations if spec else None
            paths = [Path(folder) / source.filename for folder in folders or ()]
            return next(filter(first_part, paths), paths[0] if paths else None)
        from huggingface_hub import try_to_load_from_cache  # slow to import

        assert source.repo_id
        for name in part_names(source.filename):
            found = try_to_load_from_cache(source.repo_id, name, revision=source.revision)
            if isinstance(found, str):
                return Path(found)
        return None


def load_registry(path: Path) -> Registry:
    """Read `models.json`, and `models/models.json` beside it. Whatever is wrong with them is in `.broken`."""
    registry = Registry(path)
    made = registry.folder / MADE
    if path.exists() or not made.exists():
        _load(registry, path)
    if made.exists():
        _load(registry, made)
    return registry


def _load(registry: Registry, path: Path) -> None:
    file = path.relative_to(registry.folder).as_posix()
    told = f" ({file})" if path != registry.path else ""
    try:
        raw, twice = _read(path)
    except ChatError as error:
        registry.broken[file] = str(error)
        return
    if twice:
        registry.broken[file] = f"the key {twice[0]!r} is there twice; the last one counts"
    for name, content in raw.items():
        try:
            entry = _beside(path.relative_to(registry.folder).parent, parse_entry(content))
        except ValueError as error:
            registry.broken[name] = f"{error}{told}"
            continue
        if reason := registry.missing(entry):
            registry.broken[name] = f"{reason}{told}"
        else:
            registry.entries[name] = entry
            registry.broken.pop(name, None)  # of the file before, which this one replaces


def _beside(folder: Path, entry: Entry) -> Entry:
    """The entry of a file in `folder`: relative paths there are made relative to the project's folder."""
    if folder == Path():
        return entry

    def moved(path: str) -> str:
        return (folder / os.path.expanduser(path)).as_posix()

    sources = [
        source.model_copy(update={"path": moved(source.path)}) if source.path else source
        for source in entry.sources
    ]
    adapters = [adapter.model_copy(update={"path": moved(adapter.path)}) for adapter in entry.adapters]
    return entry.model_copy(update={"sources": sources, "adapters": adapters})


def add(path: Path, name: str, entry: Entry) -> None:
    """Add or replace one entry, leaving the others as they are, in their order. Raises ChatError.

    Other programs that add one wait: none of them writes what it read before the others wrote.
    """
    with FileLock(_lock_of(path)):
        raw = check_extensible(path)
        raw[name] = entry.model_dump(mode="json", exclude_unset=True)
        write_json(path, raw)


def _lock_of(path: Path) -> Path:
    """Beside other temporary files, so that nothing new lies beside the menu."""
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"tune2chat-{getpass.getuser()}-{name}.lock")


def check_extensible(path: Path) -> dict[str, Any]:
    """Return what `add` would add to. Raises ChatError where it would have to lose something."""
    raw, twice = _read(path) if path.exists() else ({}, [])
    if twice:  # writing the file anew would lose the first
        raise ChatError(f"{path.name} has the key {twice[0]!r} twice; rename or remove one")
    return raw


def menu(registry: Registry) -> list[tuple[str, str]]:
    """Return (label, name) for each entry, the verdict included, so that nobody downloads what can't run."""
    return [(_label(registry, name, entry), name) for name, entry in registry.entries.items()]


def _label(registry: Registry, name: str, entry: Entry) -> str:
    path = registry.locate(entry)
    size = model_size(path) if path else entry.size_bytes
    # The file knows better, and a context is at most what its model was trained on.
    trained, kv_bytes = read_sizes(path, path.stat().st_mtime_ns) if path else (0, 0)
    n_ctx = min(entry.n_ctx, trained or entry.n_ctx)
    parts = [name]
    if size:
        parts += [human_size(size), verdict(size, kv_bytes or entry.kv_bytes_per_token or 0, n_ctx)]
    parts.append("on this disk" if path else "download")
    parts += [f"{key.replace('_', ' ')} {value}" for key, value in entry.quality.items() if value is not None]
    return " · ".join(parts)


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the JSON object in `path`, and keys that one of its objects has twice. Raises ChatError."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice.extend(key for key in keys if keys.count(key) > 1)
        return dict(pairs)

    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ChatError(
            f"{path.name}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8; a number of 5,000 digits
        raise ChatError(f"can't read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(raw, dict):
        raise ChatError(f"{path.name} must hold an object of models by name, not {shown(raw)}")
    return raw, twice
