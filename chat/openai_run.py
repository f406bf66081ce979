"""A reply of the API as it is made: by a thread of its own, read by the server, ended with its client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Generic, TypeVar

from chat.guard import Receive

T = TypeVar("T")


class Ended(Exception):
    """There is nothing more to read."""


class Run(Generic[T]):
    """The items of a generator that a thread goes through, for one reader in the running loop.

    A thread of its own: waiting for a model takes minutes, and the threads of Gradio's pool are the page's.
    How many there are is bounded by the guard's crowd.
    """

    def __init__(self, make: Callable[[], Iterator[T]], stop: Callable[[], None]) -> None:
        self._make, self._stop = make, stop
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[T | BaseException] = asyncio.Queue()  # at most a reply's, which is bounded
        self.stopped = False

    @asynccontextmanager
    async def for_client(self, receive: Receive) -> AsyncIterator[None]:
        """Go through the generator as long as the client is there, and no longer than this block."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.stop()

        watcher = asyncio.create_task(watch())
        threading.Thread(target=self._go, name="api reply", daemon=True).start()
        try:
            yield
        finally:
            watcher.cancel()
            self.stop()

    def _go(self) -> None:
        try:
            # mypy: a generator has close, an iterator needn't.
            with closing(self._make()) as items:  # type: ignore[type-var]
                for item in items:
                    if self.stopped:  # perhaps before the reply could be: it ends by itself, and is counted
                        self._stop()
                    self._put(item)
            self._put(Ended())
        except BaseException as error:  # noqa: BLE001 (whoever reads raises it)
            self._put(error)

    def _put(self, item: T | BaseException) -> None:
        with suppress(RuntimeError):  # the loop is closed: the app has ended
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    def stop(self) -> None:
        """End the reply, from any thread; what it has written by then can still be read."""
        self.stopped = True
        self._stop()

    async def next(self, patience: float | None = None) -> T:
        """Return the next item. Raises Ended, TimeoutError after `patience` seconds, or its error."""
        async with asyncio.timeout(patience):
            item = await self._items.get()
        if isinstance(item, BaseException):
            raise item
        return item
