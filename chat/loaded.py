"""What chat/model_host.py has loaded: a model and who holds it, and how engines are chosen and started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chat.turn_queue import Ticket
from core.engine import Engine
from core.entry import Entry
from core.errors import ChatError
from core.gguf_model import GgufFile, read_sizes
from core.gguf_reader import model_size
from core.lora import Adapter
from core.machine import kept_prompt_bytes, model_bytes, shared_cells
from core.model import Model

ENGINES = ("auto", "in-process", "llama-server")


@dataclass(eq=False)
class Loaded:
    """A model in memory, the turns that hold it, and the bytes that it takes."""

    model: Model
    need: int
    inside: set[Ticket] = field(default_factory=set)
    settled: bool = False
    _settling: bool = False

    def alive(self) -> bool:
        return self._settling or self.model.engine.alive()

    def computing(self) -> int:
        """How many turns have it that are for a reply."""
        return sum(ticket.computes for ticket in self.inside)

    def fits(self, ticket: Ticket, waiting: Collection[Ticket]) -> bool:
        """Whether the turn's prompt and reply fit into the cache beside those that don't wait any more."""
        running = sum(other.tokens for other in self.inside if other not in waiting)
        return running + ticket.tokens <= self.model.engine.n_cells

    def settle(self, cancelled: Callable[[], bool]) -> None:
        """Let a new engine measure what this machine can do, if it wants to. Raises ChatError."""
        if not self.settled:
            self._settling = True
            try:
                self.model.engine.settle(cancelled)
                self.settled = True
            finally:
                self._settling = False


@dataclass(eq=False)
class Loading:
    """A model that is being loaded, by a thread of its own: no lock is held meanwhile."""

    name: str
    need: int
    victims: list[Loaded]  # closed when the new engine starts, and kept if it comes to nothing before
    cancelled: threading.Event = field(default_factory=threading.Event)


def bytes_needed(kind: str, entry: Entry, path: Path) -> int:
    """Return what a model takes with an engine of `kind`, as far as the beginning of its file tells."""
    if kind not in ENGINES:
        return 0  # it runs elsewhere
    trained, kv_bytes = read_sizes(path, path.stat().st_mtime_ns)
    size, n_ctx = model_size(path), min(entry.n_ctx, trained or entry.n_ctx)
    if kind == "in-process":
        return model_bytes(size, kv_bytes, n_ctx)
    cells = shared_cells(size, kv_bytes, n_ctx)
    return model_bytes(size, kv_bytes, cells) + kept_prompt_bytes(size, kv_bytes, n_ctx, cells)


def make_room(
    ticket: Ticket,
    ahead: list[Ticket],
    waiting: list[Ticket],
    loaded: dict[str, Loaded],
    loading: dict[str, Loading],
    memory: Callable[[int], int],
) -> list[Loaded] | None:
    """Return the models that have to go before the ticket's is loaded; None while it has to wait for room.

    What a ticket has claimed is closed to whoever came later: running replies end, and nobody starves. First
    go those that nobody wants, the one used least recently (`loaded` has that order) before the others.
    """
    ticket.claims &= set(loaded)
    if any(earlier.claims & set(loaded) for earlier in ahead):
        return None  # that room is another's, and not free yet
    coming = {e.model: e.need for e in ahead if e.model not in loaded}
    coming |= {each.name: each.need for each in loading.values()}
    budget = memory(sum(each.need for each in loaded.values()))
    wanted = {other.model for other in waiting}
    staying = [name for name in loaded if name not in ticket.claims]
    staying.sort(key=lambda name: name in wanted or bool(loaded[name].inside))

    def needed() -> int:
        return ticket.need + sum(coming.values()) + sum(loaded[name].need for name in staying)

    while staying and needed() > budget:
        ticket.claims.add(staying.pop(0))
    if coming and needed() > budget:
        return None  # until those are there, and can be claimed
    victims = [loaded[name] for name in ticket.claims]
    busy = any(victim.inside for victim in victims) or any(e.model in ticket.claims for e in ahead)
    return None if busy else victims


def start_engine(
    kind: str,
    file: GgufFile,
    n_ctx: int,
    n_threads: int,
    adapters: Sequence[Adapter],
    cancelled: Callable[[], bool],
    overrides: dict[str, int],
) -> Engine:
    """Load `file` with an engine of `kind`. Raises ChatError."""
    if kind == "in-process":
        # It loads llama.cpp's library: not before it is needed.
        from core.in_process import InProcessEngine

        return InProcessEngine(file.path, n_ctx, n_threads, adapters, cancelled, overrides)
    from chat.llama_server import LlamaServerEngine

    sizes = file.file_size, file.kv_bytes_per_token, n_ctx
    cells = shared_cells(*sizes)
    kept = kept_prompt_bytes(*sizes, cells)
    return LlamaServerEngine(file.path, n_ctx, n_threads, adapters, cells, kept, cancelled, overrides)


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
