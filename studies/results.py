"""What a study has measured so far: one JSON file, whole after each cell, and of one version and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import ChatError
from core.files import read_json, write_json

FILE = "results.json"


class Results:
    """The cells of a study by their keys, in `folder`/results.json."""

    def __init__(self, folder: Path, version: int, settings: dict[str, Any]) -> None:
        """Read what is there. Raises ChatError for results of another version or of other settings."""
        self.path = folder / FILE
        self.content: dict[str, Any] = {"version": version, "settings": settings, "cells": {}}
        if not self.path.exists():
            return
        found = read_results(folder, version)
        if found["settings"] != settings:
            then, now = found["settings"], settings
            apart = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
            said = ", ".join(f"{name} {then.get(name)!r}, and now {now.get(name)!r}" for name in apart)
            raise ChatError(
                f"{self.path} holds results of other settings ({said}): a table of both means nothing. "
                "Move it away, or give another folder: --out FOLDER"
            )
        self.content = found

    def done(self, key: str) -> bool:
        """Whether the cell is there."""
        return key in self.content["cells"]

    def put(self, key: str, value: Any) -> None:
        """Keep a cell, and write the file whole."""
        self.content["cells"][key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)


def read_results(folder: Path, version: int) -> dict[str, Any]:
    """What is in `folder`/results.json: `version`, `settings` and `cells`. Raises ChatError, also for those
    of another version."""
    path = folder / FILE
    found = read_json(path)
    if found.get("version") != version:
        raise ChatError(
            f"{path} holds results of another version ({found.get('version')!r}, and now {version!r}): "
            "its figures may mean something else. Move it away, or give another folder: --out FOLDER"
        )
    if not all(isinstance(found.get(name), dict) for name in ("settings", "cells")):
        raise ChatError(f"{path} has no settings or no cells. Move it away: it is measured anew")
    return found
