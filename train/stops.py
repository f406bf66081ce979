"""SIGTERM, and SIGHUP of a terminal that is closed, stop a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, Any], Any]


@contextmanager
def on_stop(handler: Handler) -> Iterator[None]:
    """Let `handler` take the signals while the block runs; what was ignored, as by nohup, stays ignored.

    Ctrl-C is taken even so: a shell has its background jobs ignore it.
    """
    terminals = [fd for fd in (1, 2) if _is_terminal(fd)]

    def take(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:  # the terminal is gone, and the next line on it would be an error
            nothing = os.open(os.devnull, os.O_WRONLY)
            for fd in terminals:
                os.dup2(nothing, fd)
        handler(number, frame)

    taken = [n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, take) for number in taken}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def interrupt(number: int, frame: Any) -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
