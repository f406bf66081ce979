"""The line: bounded for all and for each user, in the order of arrival."""

from __future__ import annotations

import pytest

from chat.context import TurnState
from chat.page_html import progress_html
from chat.turn_queue import Queue, Ticket, Waiting
from core.errors import QueueFull


def test_a_full_line_says_so_at_once() -> None:
    queue = Queue(size=3)
    for _ in range(3):
        queue.join(Ticket("m"))
    with pytest.raises(QueueFull, match="The queue is full: 3 others are waiting"):
        queue.join(Ticket("m"))
    assert queue.counts.finished["refused"] == 1
    with queue.changed:
        queue.start(queue.waiting[0])
    queue.join(Ticket("m"))


def test_one_user_cannot_fill_it() -> None:
    queue = Queue(size=10, per_user=2)
    tickets = [Ticket("m", "ann"), Ticket("m", "ann")]
    for ticket in tickets:
        queue.join(ticket)
    with pytest.raises(QueueFull, match="2 of your messages are waiting already"):
        queue.join(Ticket("m", "ann"))
    queue.join(Ticket("m", "ben"))
    queue.end(tickets[0])  # stopped
    queue.join(Ticket("m", "ann"))


def test_a_place_counts_those_who_came_before() -> None:
    queue = Queue()
    tickets = [Ticket("m") for _ in range(3)]
    for ticket in tickets:
        queue.join(ticket)
    with queue.changed:
        assert queue.place(tickets[2], "x") == Waiting(3, 3, "x")
        queue.start(tickets[0])
        assert queue.place(tickets[2], "x") == Waiting(2, 2, "x")
        queue.put_first(tickets[0])
        assert queue.place(tickets[0], "x") == Waiting(1, 3, "x")
    assert queue.running == 0


def test_the_page_tells_place_and_reason() -> None:
    told = progress_html(TurnState(waiting=Waiting(3, 5, "small is being loaded")))
    assert "Waiting for the model: place 3 of 5 in line. Small is being loaded." in told
