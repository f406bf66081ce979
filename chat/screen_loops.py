"""Closes the event loops that Gradio leaves open, which would end in a traceback when they are collected."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_left_open: list[asyncio.AbstractEventLoop] = []


@contextmanager
def loops_closed() -> Iterator[None]:
    """Close what this thread makes inside, but for the last: it is the thread's own from then on.

    Gradio makes a loop for each of its locks where none runs (gradio/utils.py, `safe_get_lock`) and forgets
    it. When Python collects one, its socket may be gone before it, and its `__del__` prints a traceback.
    """
    make, here = asyncio.new_event_loop, threading.get_ident()

    def new_event_loop() -> asyncio.AbstractEventLoop:
        loop = make()
        if threading.get_ident() == here:  # not that of the server, which runs in a thread of its own
            _left_open.append(loop)
        return loop

    asyncio.new_event_loop = new_event_loop
    try:
        yield
    finally:
        asyncio.new_event_loop = make
        while len(_left_open) > 1:
            _left_open.pop(0).close()
