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
        found = read_json(self.path)
        for name, now in (("version", version), ("settings", settings)):
            if found.get(name) != now:
                raise ChatError(
                    f"{self.path} holds results of another {name} ({found.get(name)!r}, and now {now!r}): "
                    "a table of both means nothing. Move it away, or give another folder: --out FOLDER"
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
