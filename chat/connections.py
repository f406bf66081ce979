"""Bounds for the server's connections: how many, and how long one may take to ask, or not read its answer.

The server (uvicorn) waits for a request's head for ever, takes one of any length, and keeps an answer until
it is read. Gradio makes the server itself, so the bounds are given to its class of connections (`cycle`,
`flow` and `connections` of uvicorn/protocols/http/httptools_impl.py and h11_impl.py, 0.54).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

LOOK_S = 1.0  # how often a connection is looked at
ASK_S, READ_S = 15.0, 60.0  # for the whole head of a request; for any of an answer that waits
CROWDED, CROWDED_S = 256, 2.0  # with more connections than this there is less patience
LONGEST_HEAD = 64 * 2**10  # bytes
PIPELINED = 8  # requests before the answer to the first: no browser sends any
MOST = 1024


class Bounded:
    """What the server's class of connections is made to do besides: end one that makes it wait too long."""

    most = MOST
    connections: set[Any]
    cycle: Any
    flow: Any
    loop: Any
    transport: Any

    head, waits_for, since = 0, "", 0.0
    answering: Any = None  # `cycle` is the newest request; several can come at once, and wait

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self.since = self.loop.time()
        if len(self.connections) > self.most:
            _end_the_idlest(self.connections)
        self.loop.call_later(LOOK_S, self.look)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        read = before is not None and not before.more_body
        super().data_received(data)  # type: ignore[misc]
        if self.cycle is not before:
            self.head, self.since = 0, self.loop.time()
        elif read or self.is_idle():
            self.head += len(data)
        running = self.answering or self.cycle
        too_long = running is not self.cycle and len(self.cycle.body) > LONGEST_HEAD  # of one that waits
        if too_long or self.head > LONGEST_HEAD or len(getattr(self, "pipeline", ())) > PIPELINED:
            self.end()
        elif running and not running.more_body and not self.is_idle():
            self.flow.resume_reading()  # or nobody would see that the client is gone

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()  # type: ignore[misc]

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.answering = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[misc]

    def connection_lost(self, exc: Exception | None) -> None:
        self.forget()
        super().connection_lost(exc)  # type: ignore[misc]

    def end(self) -> None:
        """Close the connection, whatever is under way."""
        self.forget()
        self.transport.abort()

    def forget(self) -> None:
        """Have no answer written any more: uvicorn forgets all but the newest, and writes to nowhere."""
        getattr(self, "pipeline", []).clear()
        for cycle in (self.answering, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def look(self) -> None:
        if self.transport.is_closing():
            return
        waits_for = "request" if self.is_idle() else "reader" if self.flow.write_paused else ""
        if waits_for != self.waits_for:
            self.waits_for, self.since = waits_for, self.loop.time()
        patience = {"request": ASK_S, "reader": READ_S, "": float("inf")}[waits_for]
        if len(self.connections) > CROWDED:
            patience = min(patience, CROWDED_S) if waits_for else patience
        if self.loop.time() - self.since > patience:
            self.end()
        else:
            self.loop.call_later(LOOK_S, self.look)


def bound(server: Any) -> None:
    """Bound the connections that `server`, a uvicorn.Server, takes from now on."""
    base = server.config.http_protocol_class
    server.config.http_protocol_class = type("Connection", (Bounded, base), {"most": _room()})


def _end_the_idlest(connections: Any) -> None:
    """End the connection that has asked for nothing for the longest time, if there is one."""
    open_ones = [one for one in connections if hasattr(one, "since") and not one.transport.is_closing()]
    idle = [one for one in open_ones if one.is_idle()]
    if idle:
        min(idle, key=lambda one: one.since).end()


def _room() -> int:
    """Return how many connections there may be: each is an open file, of which a process has few at first."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 4 * MOST
        if 0 <= soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return MOST if soft < 0 else min(MOST, soft // 2)
    return MOST
