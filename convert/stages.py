"""What is done already: `stages.json` of a run, so that a second run does nothing twice.

Each stage is recorded with a key, a hash of everything that it was made from, and with the hashes of the
files that it made. It counts as done when the key is the same and its files are there as it left them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.files import whole

SAMPLE_BYTES = 2**20
SAMPLES = 64


def fingerprint(path: Path) -> str:
    """SHA-256 of a file; above 64 MiB, of its size, its last change and 64 pieces of 1 MiB spread over it.

    A whole hash of all that a conversion touches would take longer than the merge. The pieces include the
    beginning, where a safetensors or GGUF file lists its tensors, and the end, which a cut copy lacks.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(str(path.stat().st_mtime_ns).encode())
            for piece in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * piece // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def key(*parts: object) -> str:
    """Hash settings, other keys, files and folders (the files in them) into the key of a stage."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"\0" + _part(part).encode())
    return digest.hexdigest()


def _part(part: object) -> str:
    if isinstance(part, Path):
        return json.dumps([[file.relative_to(part).as_posix(), fingerprint(file)] for file in _files(part)])
    return json.dumps(part, sort_keys=True)


class Stages:
    """The stages of one run that are done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # never written, or cut short: then everything is done again
            self._done = {}

    def done(self, stage: str, wanted: str) -> bool:
        """Whether `stage` was finished with the key `wanted` and its files haven't changed since."""
        record = self._done.get(stage)
        if not record or record["key"] != wanted:
            return False
        return all(
            made["state"] and _state(Path(path)) == made["state"] for path, made in record["made"].items()
        )

    def note(self, stage: str) -> Any:
        """What `finish` was told about the stage."""
        return self._done[stage]["note"]

    def finish(self, stage: str, wanted: str, made: Iterable[Path], note: Any = None) -> None:
        """Record a stage, with its key, whose files are complete under their final names."""
        files = {str(path): {"state": _state(path), "sha256": key(path)} for path in made}
        self._done[stage] = {"key": wanted, "made": files, "note": note}
        with whole(self._path) as partial:
            partial.write_text(json.dumps(self._done, indent=1) + "\n", encoding="utf-8")


def _state(path: Path) -> list[list[Any]]:
    """Name, size and time of the last change of a file, or of all in a folder: git's way to see a change."""
    states = [(file.relative_to(path).as_posix(), file.stat()) for file in _files(path)]
    return [[name, found.st_size, found.st_mtime_ns] for name, found in states]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())  # not our own folder in it
    return [path] if path.is_file() else []
