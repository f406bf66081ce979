"""The one model in memory: loads it, shares it between chats, swaps it when nobody uses it, restarts it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.engine import Engine, wanted
from core.errors import ChatError
from core.gguf_model import GgufFile
from core.machine import memory_limit_bytes, thread_count
from core.model import Model, Replies, open_model
from core.registry import Entry, Registry, menu
from core.templates import TemplateRenderer

ENGINES = ("auto", "in-process", "llama-server")
ASK_AGAIN_S = 0.2  # how often a turn that waits for its model looks whether it was stopped
CLOSE_LIMIT_S = 5.0  # a load that hangs in the disk must not keep the app from ending
SLOTS_SHARE = 0.1  # of the memory limit that further chats' context may take


class _Ticket:
    """A turn that stands in line for the model `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: Exception | None = None  # why that model did not load


class _Loading:
    """The model that is being loaded, by a thread of its own: no lock is held meanwhile."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cancelled = threading.Event()


class Host:
    """Chats take the model with `use`; who asks for another one waits until it is free."""

    def __init__(
        self, registry: Registry, engine: str = "auto", threads: Callable[[], int] = thread_count
    ) -> None:
        self.registry, self._threads = registry, threads
        self.engine = choose_engine(engine)
        self._renderer = TemplateRenderer()
        self._model: Model | None = None
        self._users = 0
        self._queue: deque[_Ticket] = deque()  # turns in the order of their arrival: nobody is overtaken
        self._loading: _Loading | None = None
        self.closed = False
        self._changed = threading.Condition()

    @property
    def default(self) -> str:
        """The model that a new chat begins with: the first one; empty when there is none."""
        return next(iter(self.registry.entries), "")

    @property
    def warning(self) -> str:
        """What the page must say about the loaded model."""
        model = self._model  # once: another thread may unload it
        return model.warning if model else ""

    def menu(self) -> list[tuple[str, str]]:
        """(label, name) of each model, with its size and whether it fits this machine."""
        return menu(self.registry)

    @contextmanager
    def use(self, name: str, given_up: Callable[[], bool] = lambda: False) -> Iterator[Model]:
        """Hold the model called `name` for one turn, loading it first if need be.

        Raises ChatError, also when `given_up` becomes true while the turn waits for the model: a load that
        nobody else wants next ends with it.
        """
        self._find(name)  # who asks for what is not there must not make others wait behind
        ticket = _Ticket(name)
        with self._changed:
            self._queue.append(ticket)
            try:
                model = self._wait(ticket, given_up)
                self._users += 1
            finally:
                self._queue.remove(ticket)
                if self._loading and not (self._queue and self._queue[0].name == self._loading.name):
                    self._loading.cancelled.set()
                self._changed.notify_all()
        try:
            yield model
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def wanted_besides(self, name: str) -> bool:
        """Whether somebody waits for another model than `name`."""
        return any(ticket.name != name for ticket in list(self._queue))

    def _wait(self, ticket: _Ticket, given_up: Callable[[], bool]) -> Model:
        """Wait, with the lock let go, until it is the ticket's turn and its model is there."""
        name = ticket.name
        while True:
            if self.closed:
                raise ChatError("The app is ending.")
            if ticket.error:
                raise ticket.error
            next_one = self._queue[0] is ticket and self._loading is None
            if next_one and self._model and self._serves(name):
                return self._model  # also to a turn that is stopped by now: there is nothing to wait for
            if given_up():
                loading = self._loading and self._loading.name == name
                reason = f"{name} was being loaded" if loading else "other chats were using another model"
                raise ChatError(f"Stopped while {reason}" + ("." if loading else f" than {name}."))
            if next_one and self._users == 0:
                self._loading = _Loading(name)
                threading.Thread(target=self._bring, args=(self._loading,), name="load", daemon=True).start()
            self._changed.wait(ASK_AGAIN_S)

    def _bring(self, loading: _Loading) -> None:
        """Load a model in this thread; then wake whoever waits for it, or tell them why it failed."""
        model, failure = None, None
        try:
            model = self._load(loading.name, loading.cancelled.is_set)
        except Exception as error:  # noqa: BLE001 (whoever waits raises it)
            failure = error
        with self._changed:
            self._loading = None
            if model and self.closed:
                model.engine.close()
            else:
                self._model = model or self._model
            if not loading.cancelled.is_set():
                for ticket in self._queue:
                    ticket.error = failure if ticket.name == loading.name else ticket.error
            self._changed.notify_all()

    def _serves(self, name: str) -> bool:
        return self._model is not None and self._model.name == name and self._model.engine.alive()

    def _find(self, name: str) -> tuple[Entry, Path]:
        entry = self.registry.entries.get(name)
        if entry is None:
            raise ChatError(
                f"No model is called {name!r}; choose one of: {', '.join(self.registry.entries)}."
            )
        path = self.registry.locate(entry)
        if path is None:
            raise ChatError(f"{name} is not on this disk. Choose it in the model menu to download it.")
        return entry, path

    def _load(self, name: str, cancelled: Callable[[], bool] = wanted) -> Model:
        entry, path = self._find(name)
        replies = self._model.replies if self._model and self._model.name == name else Replies()
        folder = self.registry.folder
        adapters = [a.model_copy(update={"path": str(folder / a.path)}) for a in entry.adapters]

        def start(file: GgufFile, n_ctx: int, overrides: dict[str, int]) -> Engine:
            self._unload()  # two models at once may not fit
            if self.engine == "in-process":
                # It loads llama.cpp's library: not before it is needed.
                from core.in_process import InProcessEngine

                return InProcessEngine(file.path, n_ctx, self._threads(), adapters, cancelled, overrides)
            from chat.llama_server import LlamaServerEngine

            slots = 2 if file.kv_bytes_per_token * n_ctx < memory_limit_bytes() * SLOTS_SHARE else 1
            return LlamaServerEngine(file.path, n_ctx, self._threads(), adapters, slots, cancelled, overrides)

        apart = self.engine == "llama-server"
        return open_model(name, entry, path, self._renderer, start, replies, cancelled, apart=apart)

    def _unload(self) -> None:
        if self._model:
            self._model.engine.close()
            self._model = None

    def close(self) -> None:
        """Free the model and end every child process, and a load that is under way."""
        with self._changed:
            self.closed = True
            if self._loading:
                self._loading.cancelled.set()
            self._changed.notify_all()
        self._renderer.close()  # a load may wait for it
        with self._changed:
            idle = self._changed.wait_for(lambda: self._loading is None, CLOSE_LIMIT_S)
        if idle:
            self._unload()
        self._renderer.close()  # what the load asked of it since


def choose_engine(name: str) -> str:
    """Resolve `--engine`: the child process where its binary is there, else inside the app."""
    from chat.llama_server import find_binary

    if name not in ENGINES:
        raise ChatError(f"unknown engine {name!r}; choose one of {', '.join(ENGINES)}")
    if name == "auto":
        return "llama-server" if find_binary() else "in-process"
    if name == "llama-server" and not find_binary():
        raise ChatError(
            "this installation of llama-cpp-python has no llama-server; "
            "run 'make chat' once to build it, or use --engine in-process"
        )
    return name
