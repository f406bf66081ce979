"""Commands that are printed for people to paste: quoted, and right from the folder where they are read."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command_line(script: str, arguments: Iterable[str | Path]) -> str:
    """The line that runs `script`, a path in the repository, with `arguments` from the working directory."""
    return shlex.join([_python(), _from_here(ROOT / script), *map(str, arguments)])


def python_line(arguments: Iterable[str]) -> str:
    """The line that runs Python itself, such as with -m and a module."""
    return shlex.join([_python(), *arguments])


def _python() -> str:
    """`python` where that is the one that runs now, as in an activated environment; else its path."""
    found = shutil.which("python")
    if found and os.path.abspath(found) == os.path.abspath(sys.executable):
        return "python"
    return _from_here(Path(sys.executable))


def _from_here(path: Path) -> str:
    """A path below the working directory from there on, any other in full."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
