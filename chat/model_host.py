"""Whose turn it is: shares the loaded models between the turns that wait in chat/turn_queue.py.

- Turns for one model begin in the order of their arrival, as many at once as its engine has slots and tokens.
- Models take turns: threads of two models on the same cores wait for one another at every operation (two
  llama-servers at once made 2 tokens a second each, one alone 62). A turn for a loaded model waits until the
  replies of the other one have ended, and whoever comes later for that one waits behind it.
- A load runs beside all that. Where the memory is too small for one model more, the one that was used least
  recently goes, when the turns that came before are through with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from chat.loaded import ENGINES, Loaded, Loading, bytes_needed, choose_engine, make_room, start_engine
from chat.remote_menu import Elsewhere
from chat.turn_queue import Queue, Ticket, Waiting
from core.engine import Engine, wanted
from core.entry import Entry
from core.errors import ChatError, NoSuchModel, Stopped
from core.gguf_model import GgufFile
from core.machine import bytes_for_models, give_back, one_heap, thread_count
from core.model import Model, Replies, open_model
from core.registry import Registry, menu
from core.templates import TemplateRenderer

__all__ = ["ENGINES", "Host"]

ASK_AGAIN_S = 0.5  # how often a turn in line looks around though nothing woke it
CLOSE_LIMIT_S = 5.0  # a load that hangs in the disk must not keep the app from ending

T = TypeVar("T")


class Host:
    """Gives turns their models: `join`, `enter`, `admit`, and `leave` at the end; or all in one, `use`."""

    def __init__(
        self,
        registry: Registry,
        engine: str = "auto",
        threads: Callable[[], int] = thread_count,
        memory: Callable[[int], int] = bytes_for_models,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.registry, self._threads, self._memory, self.elsewhere = registry, threads, memory, elsewhere
        self.engine = elsewhere.about if elsewhere else choose_engine(engine)
        one_heap()
        self.queue = Queue()
        self._renderer = TemplateRenderer()
        self._loaded: dict[str, Loaded] = {}  # by name, the one used last at the end
        self._loading: dict[str, Loading] = {}
        self._replies: dict[str, Replies] = {}  # what was said keeps its ids when a model comes back
        self.closed = False
        self._changed = self.queue.changed

    @property
    def default(self) -> str:
        """The model that a new chat begins with: the first one; empty when there is none."""
        return next(iter(self.registry.entries), "")

    def warning(self, name: str) -> str:
        """What the page must say about the model called `name`, if it is loaded."""
        loaded = self._loaded.get(name)
        return loaded.model.warning if loaded else ""

    def menu(self) -> list[tuple[str, str]]:
        """(label, name) of each model, with its size and whether it fits this machine."""
        return self.elsewhere.labels() if self.elsewhere else menu(self.registry)

    def join(
        self, name: str, user: str = "", given_up: Callable[[], bool] = wanted, computes: bool = True
    ) -> Ticket:
        """Put a turn for the model called `name` in line. Raises NoSuchModel, QueueFull."""
        entry, path = self._find(name)  # who asks for what is not there must not make others wait behind
        ticket = Ticket(name, user, given_up, computes, bytes_needed(self.engine, entry, path))
        self.queue.join(ticket)
        return ticket

    def enter(self, ticket: Ticket) -> Generator[Waiting, None, Model]:
        """Wait for the ticket's model; yield its place in line whenever that changes.

        Raises ChatError: the model doesn't load, the app ends, or Stopped when the ticket was given up.
        """
        loaded = yield from self._wait(ticket, self._let_in)
        if ticket.computes:  # nobody else does: it is the first reply of this model
            loaded.settle(lambda: ticket.given_up() or self.closed)
        return loaded.model

    def admit(self, ticket: Ticket, tokens: int) -> Generator[Waiting, None, None]:
        """Wait until `tokens` more, prompt and reply, fit the model's cache; then the turn leaves the line.

        More than fit would make llama-server break off every reply that it is writing.
        """
        ticket.tokens = tokens
        yield from self._wait(ticket, self._start)

    def return_to_line(self, ticket: Ticket) -> None:
        """Put a turn whose engine died before its first token where it was: nobody overtakes it."""
        with self._changed:
            self._let_go(ticket)
            self.queue.put_first(ticket)

    def leave(self, ticket: Ticket) -> None:
        """End the turn, wherever it is. A load that nobody wants any more ends with it."""
        with self._changed:
            self._let_go(ticket)
            self.queue.end(ticket)
            for loading in self._loading.values():
                if all(other.model != loading.name for other in self.queue.waiting):
                    loading.cancelled.set()

    @contextmanager
    def use(self, name: str, given_up: Callable[[], bool] = wanted, computes: bool = True) -> Iterator[Model]:
        """Hold the model called `name` for one turn, loading it first if need be. Raises ChatError."""
        ticket = self.join(name, "", given_up, computes)
        try:
            model = _through(self.enter(ticket))
            _through(self.admit(ticket, 0))
            yield model
        finally:
            self.leave(ticket)

    def wanted_besides(self, name: str) -> bool:
        """Whether somebody waits for another model than `name`."""
        return any(ticket.model != name for ticket in list(self.queue.waiting))

    def _wait(self, ticket: Ticket, step: Callable[[Ticket], T | None]) -> Generator[Waiting, None, T]:
        """Try `step` until it gives something, with the lock let go between."""
        shown = None
        while True:
            with self._changed:
                if self.closed:
                    raise ChatError("The app is ending.")
                if ticket.error:
                    raise ticket.error
                if (result := step(ticket)) is not None:
                    return result  # also to a turn that is stopped by now: there is nothing to wait for
                if ticket.given_up():
                    raise Stopped(f"Stopped while {self._obstacle(ticket, 'was', 'came')}.")
                waiting = self.queue.place(ticket, self._obstacle(ticket))
                if waiting == shown:
                    self._changed.wait(ASK_AGAIN_S)
                    continue
            yield (shown := waiting)

    def _let_in(self, ticket: Ticket) -> Loaded | None:
        """The ticket's model, if it is loaded and this is the next turn for it."""
        self._see_to_loads()
        loaded = self._alive(ticket.model)
        if loaded is None:
            return None
        claimed: set[str] = set()
        for earlier in self.queue.ahead(ticket, ticket.model if self.elsewhere else ""):
            ready = earlier.model not in claimed and self._alive(earlier.model)
            counting = loaded.settled and earlier in loaded.inside  # its prompt, which takes a while
            if ready and earlier.computes and ticket.computes and not counting:
                return None
            claimed |= earlier.claims
        others = not self.elsewhere and any(o.computing() for o in self._loaded.values() if o is not loaded)
        if ticket.model in claimed or (
            ticket.computes and (others or loaded.computing() >= loaded.model.engine.slots)
        ):
            return None
        loaded.inside.add(ticket)
        return loaded

    def _start(self, ticket: Ticket) -> bool | None:
        """Let the ticket leave the line: after those before it, if its tokens fit, or its engine is gone."""
        loaded = next((o for o in self._loaded.values() if ticket in o.inside), None)
        if loaded:
            earlier = any(o.computes and o in loaded.inside for o in self.queue.ahead(ticket))
            if ticket.computes and (earlier or not loaded.fits(ticket, self.queue.waiting)):
                return None
        self.queue.start(ticket)
        return True

    def _let_go(self, ticket: Ticket) -> None:
        for name, loaded in list(self._loaded.items()):
            if ticket in loaded.inside:
                loaded.inside.remove(ticket)
                self._loaded[name] = self._loaded.pop(name)  # used last

    def _alive(self, name: str) -> Loaded | None:
        """The loaded model called `name`; one whose process is gone is forgotten."""
        loaded = self._loaded.get(name)
        if loaded and not loaded.alive():
            del self._loaded[name]
            loaded.model.engine.close()
            return None
        return loaded

    def _see_to_loads(self) -> None:
        """Let the first who waits for a model that isn't there fetch it; in order, whoever looks first."""
        seen: set[str] = set()
        for place, ticket in enumerate(self.queue.waiting):
            if (
                ticket.model not in seen
                and ticket.model not in self._loading
                and not self._alive(ticket.model)
            ):
                self._fetch(ticket, self.queue.waiting[:place])
            seen.add(ticket.model)

    def _fetch(self, ticket: Ticket, ahead: list[Ticket]) -> None:
        """Begin to load the ticket's model, unless it has to wait for room."""
        victims = make_room(ticket, ahead, self.queue.waiting, self._loaded, self._loading, self._memory)
        if victims is None:
            return
        ticket.claims = set()
        for victim in victims:
            del self._loaded[victim.model.name]
        loading = self._loading[ticket.model] = Loading(ticket.model, ticket.need, victims)
        threading.Thread(target=self._bring, args=(loading,), name="load", daemon=True).start()

    def _bring(self, loading: Loading) -> None:
        """Load a model in this thread; then wake whoever waits for it, or tell them why it failed."""
        model, failure = None, None
        try:
            model = self._load(loading)
        except Exception as error:  # noqa: BLE001 (whoever waits raises it)
            failure = error
        give_back()  # what was read of the file
        with self._changed:
            del self._loading[loading.name]
            fresh = [Loaded(model, loading.need)] if model else []
            for loaded in [*loading.victims, *fresh]:
                if self.closed:
                    loaded.model.engine.close()
                else:
                    self._loaded[loaded.model.name] = loaded
            if failure and not loading.cancelled.is_set():
                for ticket in self.queue.waiting:
                    ticket.error = failure if ticket.model == loading.name else ticket.error
            self._changed.notify_all()

    def _load(self, loading: Loading) -> Model:
        name, cancelled = loading.name, loading.cancelled.is_set
        entry, path = self._find(name)
        replies = self._replies.setdefault(name, Replies())
        if self.elsewhere:
            return self.elsewhere.open(name, self._renderer, replies, cancelled)
        adapters = [a.model_copy(update={"path": str(self.registry.folder / a.path)}) for a in entry.adapters]

        def start(file: GgufFile, n_ctx: int, overrides: dict[str, int]) -> Engine:
            while loading.victims:  # the file is good: only now is their memory needed
                loading.victims.pop().model.engine.close()
            return start_engine(self.engine, file, n_ctx, self._threads(), adapters, cancelled, overrides)

        apart = self.engine == "llama-server"
        return open_model(name, entry, path, self._renderer, start, replies, cancelled, apart=apart)

    def _obstacle(self, ticket: Ticket, be: str = "is", come: str = "come") -> str:
        """What a turn waits for."""
        if ticket.model in self._loading:
            return f"{ticket.model} {be} being loaded"
        busy = [f" of {name}" for name, o in self._loaded.items() if o.inside and name != ticket.model]
        return f"{'' if busy else 'other '}replies{busy[0] if busy else ''} {come} first"

    def _find(self, name: str) -> tuple[Entry, Path]:
        entry = self.registry.entries.get(name)
        if entry is None:
            raise NoSuchModel(
                f"No model is called {name!r}; choose one of: {', '.join(self.registry.entries)}."
            )
        path = self.registry.locate(entry)
        if path is None and not self.elsewhere:
            raise NoSuchModel(f"{name} is not on this disk. Choose it in the model menu to download it.")
        return entry, path or Path()

    def close(self) -> None:
        """Free the models and end every child process, and loads that are under way."""
        with self._changed:
            self.closed = True
            for loading in self._loading.values():
                loading.cancelled.set()
            self._changed.notify_all()
        self._renderer.close()  # a load may wait for it
        with self._changed:
            self._changed.wait_for(lambda: not self._loading, CLOSE_LIMIT_S)
            loaded, self._loaded = list(self._loaded.values()), {}
        for each in loaded:
            each.model.engine.close()
        self._renderer.close()  # what the load asked of it since
        if self.elsewhere:
            self.elsewhere.close()


def _through(steps: Generator[Any, None, T]) -> T:
    """Go through `steps` and return what they end with."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
