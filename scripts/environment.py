"""The virtual environment of `make`: made once, installed into only when something it depends on changed."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST_PIP = (23, 2)  # older ones don't know --config-settings inside a requirements file


class SetupError(Exception):
    """Why the set-up can't go on, and the command that cures it."""


@dataclass(frozen=True)
class Environment:
    """One virtual environment and the stamps of the steps that are done in it."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter inside the environment."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def ask(self, expression: str) -> str:
        """Evaluate an expression over `sys` and `sysconfig` in the environment; empty when it doesn't run."""
        code = f"import sys, sysconfig; print({expression})"
        try:
            answer = subprocess.run(
                [self.python, "-I", "-c", code], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return ""  # never made, or made by a Python that is gone
        return answer.stdout.strip()

    @functools.cached_property
    def site_packages(self) -> Path:
        """Where wheels with compiled code are installed."""
        return Path(self.ask("sysconfig.get_path('platlib')"))

    def create(self) -> None:
        """Make the environment, or make it again when its interpreter no longer runs."""
        if not ((self.folder / "pyvenv.cfg").is_file() and self.ask("'runs'")):
            print(f"Making {self.folder.name} with Python {sys.version.split()[0]}.", flush=True)
            made = subprocess.run([sys.executable, "-m", "venv", "--clear", self.folder], check=False)
            if made.returncode:
                cure = "on Debian and Ubuntu: sudo apt-get install -y python3-venv"
                raise SetupError(f"'{sys.executable} -m venv {self.folder}' failed; {cure}")
        self.once("pip", [str(OLDEST_PIP)], self._modernise_pip)

    def _modernise_pip(self) -> None:
        if tuple(map(int, re.findall(r"\d+", self.ask("__import__('pip').__version__"))[:2])) < OLDEST_PIP:
            self.pip("install", "--quiet", "--upgrade", "pip")

    def pip(self, *arguments: str) -> None:
        """Run the environment's pip, with the user's own configuration of indexes."""
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments]
        # llama.cpp is compiled on all the cores that we may use; its build system asks this variable.
        variables = {"CMAKE_BUILD_PARALLEL_LEVEL": str(core_count()), "PIP_COMPILE": "0", **os.environ}
        if subprocess.run(command, env=variables, check=False).returncode:
            raise SetupError(f"'pip {' '.join(arguments)}' failed, for the reason that it gives above")

    def compile(self) -> None:
        """Compile what was installed since the last time, on all cores; pip would take one, and a minute."""

        def on_all_cores() -> None:
            command: list[str | Path] = [self.python, "-m", "compileall", "-q", "-j", "0", self.site_packages]
            # Some packages bring files for other Pythons, which nobody imports and which don't compile.
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        stamps = sorted(path for path in (self.folder / "done").iterdir() if path.name != "compiled")
        self.once("compiled", stamps, on_all_cores)

    def once(self, step: str, inputs: Sequence[Path | str], act: Callable[[], None]) -> bool:
        """Do a step unless it was done with these inputs (strings, contents of files); say if it was done."""
        digest = hashlib.sha256(self.ask("sys.version").encode())
        for item in inputs:
            digest.update(b"\0" + (item.read_bytes() if isinstance(item, Path) else item.encode()))
        stamp = self.folder / "done" / step
        if stamp.is_file() and stamp.read_text() == digest.hexdigest():
            return False
        stamp.unlink(missing_ok=True)
        act()
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(digest.hexdigest())
        return True


def core_count() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
