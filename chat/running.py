"""Replies that outlive the page that asked for them: after a reload, it follows the one that still runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from chat.context import TurnState
from core.errors import ChatError

SAVE_INTERVAL_S = 2.0  # what the end of the app may take of a reply
ALONE_S = 15.0  # that a reply goes on without a page: long enough for a reload on a slow line


class Running:
    """A reply in the making, by a thread of its own. Any number of pages follow it, or none for a while."""

    def __init__(
        self,
        states: Iterator[TurnState],
        stop: Callable[[], None],
        keep: Callable[[bool], None] = lambda done: None,
        changed: threading.Condition | None = None,
    ) -> None:
        """Begin. `keep` is called with False every SAVE_INTERVAL_S, and with True when the reply has ended.

        Replies that are followed together share `changed`.
        """
        self.state, self.states, self.ended, self.followers = TurnState(), 0, False, 0
        self.error: Exception | None = None
        self.changed = changed or threading.Condition()
        self._states, self.stop, self._keep = states, stop, keep
        self._alone: object = None  # since when no page follows it
        self.thread = threading.Thread(target=self._run, name="reply", daemon=True)
        self.thread.start()
        self._watch()

    def _run(self) -> None:
        saved = time.monotonic()
        try:
            for state in self._states:
                with self.changed:
                    self.state, self.states = state, self.states + 1
                    self.changed.notify_all()
                if time.monotonic() - saved > SAVE_INTERVAL_S:
                    self._keep(False)
                    saved = time.monotonic()
        except Exception as error:  # noqa: BLE001 (who follows raises it)
            self.error = error
            self.stop()  # it may be what keeps it that failed: the chat was deleted, the disk is full
        try:
            self._keep(True)
        except ChatError as error:
            self.error = self.error or error
        finally:
            with self.changed:
                self.ended, self._alone = True, None
                self.changed.notify_all()

    def _watch(self) -> None:
        """Stop it if no page has come to follow it in ALONE_S."""
        self._alone = mark = object()
        timer = threading.Timer(ALONE_S, lambda: self.stop() if self._alone is mark else None)
        timer.daemon = True
        timer.start()

    def joined(self, by: int) -> None:
        """A page more follows it, or one less (-1)."""
        with self.changed:
            self.followers += by
            self._alone = None if self.followers else self._alone
            alone = not self.followers and not self.ended
        if alone:
            self._watch()


def follow(replies: Sequence[Running]) -> Iterator[list[TurnState]]:
    """The newest states of replies that share `changed`, whenever one of them changes, to their end.

    Then raises what ended the first that failed.
    """
    changed = replies[0].changed
    for reply in replies:
        reply.joined(1)
    try:
        seen, ended = -1, False
        while not ended:
            with changed:
                while _count(replies) == seen and not _ended(replies):
                    changed.wait()
                seen, ended, states = _count(replies), _ended(replies), [reply.state for reply in replies]
            yield states
    finally:
        for reply in replies:
            reply.joined(-1)
    for reply in replies:
        if reply.error:
            raise reply.error


def _count(replies: Sequence[Running]) -> int:
    return sum(reply.states for reply in replies)


def _ended(replies: Sequence[Running]) -> bool:
    return all(reply.ended for reply in replies)
