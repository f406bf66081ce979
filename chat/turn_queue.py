"""The one line in which all replies wait, the page's and the API's: first come, first served, and bounded.

Gradio's own queue knows no users, and counts page and API apart. This one knows no engine: chat/model_host.py
says whose turn it is.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from core.engine import Stats, wanted
from core.errors import QueueFull

QUEUE_SIZE = 64  # turns that may wait; who comes later is told so at once
PER_USER = 16  # of them those of one user, who would else fill the line alone


@dataclass(frozen=True)
class Waiting:
    """Where a turn stands in line, and for what."""

    place: int  # 1 comes next
    of: int
    reason: str  # the middle of a sentence: "other replies come first"


@dataclass(eq=False)
class Ticket:
    """A turn, from its arrival to its end.

    It waits until its model is there and it may come in, then (its prompt counted) until its tokens fit.
    """

    model: str
    user: str = ""
    given_up: Callable[[], bool] = wanted
    computes: bool = True  # else it only sees to it that the model is loaded
    need: int = 0  # bytes that its model takes when it is loaded
    tokens: int = 0  # of the context, prompt and reply, that it may fill
    claims: set[str] = field(default_factory=set)  # models that have to make room for its own
    error: Exception | None = None  # why its model did not load
    arrived: float = field(default_factory=time.monotonic)


@dataclass
class Counts:
    """What was done since the start: replies by how they ended, tokens, seconds."""

    finished: Counter[str] = field(default_factory=Counter)  # by finish_reason; "error" and "refused" too
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    waiting_s: float = 0.0  # in line, all replies together
    first_token_s: float = 0.0  # from the end of that to the first token


class Queue:
    """Tickets in the order of their arrival. `changed` guards them, and wakes whoever waits."""

    def __init__(self, size: int = QUEUE_SIZE, per_user: int = PER_USER) -> None:
        self.size, self.per_user = size, per_user
        self.changed = threading.Condition()
        self.waiting: list[Ticket] = []
        self.running = 0
        self.counts = Counts()

    def join(self, ticket: Ticket) -> None:
        """Stand in line. Raises QueueFull at once where there is no place any more."""
        with self.changed:
            own = sum(other.user == ticket.user for other in self.waiting) if ticket.user else 0
            if len(self.waiting) >= self.size or own >= self.per_user:
                self.counts.finished["refused"] += 1
                raise QueueFull(
                    f"{own} of your messages are waiting already. Send this one when one of them is answered."
                    if own >= self.per_user
                    else f"The queue is full: {self.size} others are waiting. Try again in a minute."
                )
            self.waiting.append(ticket)

    def ahead(self, ticket: Ticket, model: str = "") -> list[Ticket]:
        """Who came before `ticket` and still waits, for `model` if that is given."""
        earlier = self.waiting[: self.waiting.index(ticket)]
        return [other for other in earlier if not model or other.model == model]

    def place(self, ticket: Ticket, reason: str) -> Waiting:
        return Waiting(self.waiting.index(ticket) + 1, len(self.waiting), reason)

    def put_first(self, ticket: Ticket) -> None:
        """Put a ticket that has left the line at its head."""
        if ticket not in self.waiting:
            self.running -= ticket.computes
            self.waiting.insert(0, ticket)

    def start(self, ticket: Ticket) -> None:
        """Let the ticket leave the line: its reply begins."""
        self.waiting.remove(ticket)
        self.running += ticket.computes
        self.counts.waiting_s += time.monotonic() - ticket.arrived
        self.changed.notify_all()

    def end(self, ticket: Ticket) -> None:
        """Forget the ticket, wherever it is."""
        with self.changed:
            if ticket in self.waiting:
                self.waiting.remove(ticket)
            else:
                self.running -= ticket.computes
            self.changed.notify_all()

    def count(self, reason: str, stats: Stats | None = None) -> None:
        """Add a reply that has ended, with what it cost."""
        with self.changed:
            self.counts.finished[reason] += 1
            if stats:
                self.counts.prompt_tokens += stats.prompt_tokens
                self.counts.cached_tokens += stats.cached_tokens
                self.counts.generated_tokens += stats.generated_tokens
                self.counts.first_token_s += stats.first_token_s

    def wake(self) -> None:
        """Have all who wait look again: one of them may have been stopped."""
        with self.changed:
            self.changed.notify_all()
