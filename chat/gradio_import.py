"""Gradio, imported without the part that takes most of the time.

At every import Gradio parses its own sources and rewrites the stub files that code editors read
(`create_or_modify_pyi` of gradio/component_meta.py, 6.31): over half of the seconds between `python app.py`
and the page. It skips a class whose file can't be found, and so that is what it is told here.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from chat.address import without_proxies

__all__ = ["api", "gr"]


@contextmanager
def _no_editor_stubs() -> Iterator[None]:
    getfile = inspect.getfile

    def getfile_but_of_gradio(thing: Any) -> str:
        if not isinstance(thing, ModuleType) and getattr(thing, "__module__", "").startswith("gradio."):
            raise OSError("no stubs are written")
        return getfile(thing)

    inspect.getfile = getfile_but_of_gradio  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = getfile


with _no_editor_stubs(), without_proxies():  # it makes an HTTP client, which fails at a proxy of SOCKS
    import gradio as gr
    from gradio.events import api


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
