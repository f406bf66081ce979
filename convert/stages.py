"""What a conversion was asked for, and what of it is done: `stages.json`, so that nothing is done twice.

Each stage is recorded with a key, a hash of everything that it was made from, and with the hashes of the
files that it made. It counts as done when the key is the same and its files are there as it left them: the
content counts, whatever the times are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from core.files import file_hashes, whole


def key(*parts: object) -> str:
    """Hash settings, other keys, files and folders (the files in them) into the key of a stage."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"\0" + _part(part).encode())
    return digest.hexdigest()


def _part(part: object) -> str:
    if isinstance(part, Path):
        found = zip(files := _files(part), file_hashes(files), strict=True)
        return json.dumps([[file.relative_to(part).as_posix(), digest] for file, digest in found])
    return json.dumps(part, sort_keys=True)


class _Made(BaseModel):
    """A file or folder as a stage left it."""

    state: list[list[Any]]
    sha256: str


class _Record(BaseModel):
    """A stage that is done."""

    key: str
    made: dict[str, _Made]
    note: Any


_RECORDS = TypeAdapter(dict[str, _Record])


class Stages:
    """The stages of one run that are done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._done = _RECORDS.validate_json(path.read_bytes())
        except (OSError, ValueError):  # never written, cut short or changed: then everything is done again
            self._done = {}

    def done(self, stage: str, wanted: str) -> bool:
        """Whether `stage` was finished with the key `wanted` and its files haven't changed since."""
        record = self._done.get(stage)
        if not record or record.key != wanted:
            return False
        return all(_unchanged(Path(path), made) for path, made in record.made.items())

    def note(self, stage: str) -> Any:
        """What `finish` was told about the stage."""
        return self._done[stage].note

    def finish(self, stage: str, wanted: str, made: Iterable[Path], note: Any = None) -> None:
        """Record a stage, with its key, whose files are complete under their final names."""
        files = {str(path): _Made(state=_state(path), sha256=key(path)) for path in made}
        self._done[stage] = _Record(key=wanted, made=files, note=note)
        with whole(self._path) as partial:
            partial.write_bytes(_RECORDS.dump_json(self._done, indent=1) + b"\n")


def _unchanged(path: Path, made: _Made) -> bool:
    """Whether a file or folder is as a stage left it: by what can't be set back, else by content."""
    if not made.state or not _files(path):
        return False
    return _state(path) == made.state or key(path) == made.sha256


def _state(path: Path) -> list[list[Any]]:
    """Name, size and change of a file, or of all in a folder. The change's time (ctime) is the system's own:
    who sets the time of a file's last writing back, moves it on."""
    states = [(file.relative_to(path).as_posix(), file.stat()) for file in _files(path)]
    return [[name, found.st_size, found.st_mtime_ns, found.st_ctime_ns] for name, found in states]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())  # not our own folder in it
    return [path] if path.is_file() else []


@dataclass(frozen=True)
class Settings:
    """`base`: full, nf4, auto, or None for the default. `imatrix`: auto, none, or the path of a file."""

    base_model: str | None = None
    base: str | None = None
    imatrix: str = "auto"
    keep: bool = False
