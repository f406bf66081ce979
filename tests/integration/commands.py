"""The product's commands as processes of their own, forked off one that has imported the libraries.

PyTorch, transformers and PEFT take 8 s of a processor to import, in every process anew. A server imports them
once for all tests; a command is forked from it, and has an exit code, an output and signals as others have.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A fork must not inherit a CUDA context, and importing bitsandbytes makes one where there is a GPU.
_context = multiprocessing.get_context("spawn" if shutil.which("nvidia-smi") else "forkserver")
_context.set_forkserver_preload(["convert.conversion", "train.qlora", "train.run", "train.report"])
_SCRATCH = tempfile.TemporaryDirectory(prefix="commands-")


class Command:
    """`main` of a script such as convert/to_gguf.py on `argv`, begun; in part as subprocess.Popen."""

    def __init__(self, script: str, *argv: object, cwd: Path = ROOT) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=_SCRATCH.name))
        self.args = [script, *map(str, argv)]
        given = (self.args, self._folder, cwd, dict(os.environ))
        self._process = _context.Process(target=_main, args=given)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """What it has printed by now."""
        return self._printed("1")

    @property
    def stderr(self) -> str:
        return self._printed("2")

    def _printed(self, name: str) -> str:
        path = self._folder / name
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid
        os.kill(self._process.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return the exit code, below zero the number of the signal that killed it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode


def run(script: str, *argv: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = Command(script, *argv, cwd=cwd)
    code = command.wait()
    return subprocess.CompletedProcess(command.args, code, command.stdout, command.stderr)


def _main(args: list[str], folder: Path, cwd: Path, environment: dict[str, str]) -> None:
    """The command's process."""
    gc.freeze()  # what the server has imported
    for stream in (1, 2):
        file = os.open(folder / str(stream), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests' own shell ignores
    sys.argv = args
    sys.exit(importlib.import_module(args[0].removesuffix(".py").replace("/", ".")).main(args[1:]))
