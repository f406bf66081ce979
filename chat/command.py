"""What all our commands have in common: one line for a mistake, no traceback, and an exit code that tells."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from typing import NoReturn

from core.errors import ChatError

OURS = ("bench", "chat", "convert", "core", "publish", "train")


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
