"""Writes the pins of pyproject.toml into the requirements files: .venv/bin/python -m tests.pins"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FILES = {"requirements.txt": "", "train/requirements.txt": "train", "convert/requirements.txt": "convert"}
FILES |= {"tests/requirements.txt": "test"}
LINE = re.compile(r"^([A-Za-z][\w.-]*)[^ \n]*", re.MULTILINE)  # a name and its pin


def pins(extra: str) -> dict[str, str]:
    """The specifier of each package, by its name, of the app's own dependencies or of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, str] = {}
    for text in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        wanted = Requirement(text)
        if wanted.name == project["name"]:
            for name in wanted.extras:
                found |= pins(name)
        else:
            found[wanted.name] = str(wanted.specifier)
    return found


def names(file: str) -> list[str]:
    """The packages that a requirements file asks for."""
    return [match[1] for match in LINE.finditer((ROOT / file).read_text())]


def pinned(file: str) -> str:
    """The requirements file with the pins of pyproject.toml. Raises KeyError for a package without one."""
    known = pins(FILES[file])
    return LINE.sub(lambda match: match[1] + known[match[1]], (ROOT / file).read_text())


if __name__ == "__main__":
    for path in FILES:
        (ROOT / path).write_text(pinned(path))
