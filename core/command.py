"""What all our commands have in common: one line for a mistake, no traceback, and an exit code that tells."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from core.errors import ChatError

OURS = ("bench", "chat", "convert", "core", "publish", "studies", "train")

# When it is imported on a processor that knows bf16, bitsandbytes warns that a kernel of the hub isn't there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def print_anything() -> None:
    """Let `print` write what the terminal's encoding lacks as an escape, where it would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, exits with 2. `prog` is the command as it is typed."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def missing(error: ModuleNotFoundError) -> str:
    """The line for a package that isn't installed; raises `error` if it is one of our own modules."""
    package = (error.name or "").partition(".")[0]
    if package in OURS:
        raise error
    return (
        f"error: the package {package!r} isn't installed: "
        "pip install -r requirements.txt -r convert/requirements.txt -r train/requirements.txt"
    )


@contextmanager
def importing() -> Iterator[None]:
    """Around imports that take seconds: a package that isn't installed, or Ctrl-C, ends the program with one
    line."""

    def stop(*_: object) -> None:  # raised inside a library's import, it may come out as an ImportError
        os.write(2, b"\nStopped; nothing was begun.\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    ours = before is signal.default_int_handler  # not in a process of several, whose first one answers
    if ours:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(missing(error))
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def run(work: Callable[[], int], stopped: str) -> int:
    """Do `work`; return its exit code, 1 after a user's mistake or a full disk, 130 after Ctrl-C.

    `stopped` says what Ctrl-C leaves behind.
    """
    print_anything()
    try:
        return work()
    except ChatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(missing(error), file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that can't be written
        print(f"error: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return 130


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
