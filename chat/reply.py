"""From a stored conversation to one with a reply more: what the page and the API share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Protocol

from chat.context import Turn, TurnState, plan
from chat.conversation import Conversation, Message
from chat.model_host import Host
from core.download import download
from core.engine import Stats
from core.entry import Source, hub_source
from core.errors import ChatError
from core.model import Model
from core.prompt import Messages

PROGRESS_INTERVAL_S = 0.25
STOP_LIMIT_S = 1.0  # in which a download that was stopped says how far it is


class Stoppable(Protocol):
    def cancel(self) -> None: ...


class Fetch:
    """A download as an iterator of (bytes done, bytes in all), a few a second. Raises ChatError."""

    def __init__(self, source: Source) -> None:
        self._stopped = threading.Event()
        self._finished = threading.Event()
        self._progress: tuple[int, int | None] = (0, None)
        self._error: ChatError | None = None
        threading.Thread(target=self._download, args=(source,), name="download", daemon=True).start()

    def _download(self, source: Source) -> None:
        try:
            download(source, self._note, self._stopped.is_set)
        except ChatError as error:
            self._error = error
        finally:
            self._finished.set()

    def _note(self, done: int, total: int | None) -> None:
        self._progress = (done, total)

    def __iter__(self) -> Iterator[tuple[int, int | None]]:
        while not self._finished.wait(PROGRESS_INTERVAL_S):
            yield self._progress
            if self._stopped.is_set() and not self._finished.wait(STOP_LIMIT_S):
                raise ChatError("the download was stopped; starting it again goes on")  # the network hangs
        if self._error:
            raise self._error
        yield self._progress

    def cancel(self) -> None:
        """Stop the download; what it has is kept for the next try."""
        self._stopped.set()


class Sessions:
    """What is running, one reply or download per browser tab, so that each page can stop its own."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._running: dict[str, Stoppable] = {}

    def reply(self, key: str, conversation: Conversation, extend: bool = False) -> Iterator[TurnState]:
        """Answer the last message of `conversation`, or `extend` its last reply, and update it meanwhile.

        `key` names the tab for `stop`. Raises ChatError; what was written by then stays in the conversation.
        """
        turn = self._running[key] = Turn()
        try:
            yield TurnState()  # the model may have to be loaded, or another chat's turn may come first
            with self.host.use(conversation.model, lambda: turn.cancelled) as model:
                yield from _reply(turn, model, conversation, extend)
        finally:
            self._forget(key, turn)

    def prepare(self, key: str, name: str) -> Iterator[tuple[int, int | None]]:
        """Load the model called `name`, downloading it first if need be, with (bytes done, bytes in all).

        Raises ChatError: no network, no such file, no room, not a model that runs here, or stopped.
        """
        registry = self.host.registry
        entry = registry.entries.get(name)
        if entry and registry.locate(entry) is None and (source := hub_source(entry)):
            task = self._running[key] = Fetch(source)
            try:
                yield from task
            finally:
                task.cancel()  # nobody reads on: the page was closed
                self._forget(key, task)
        load = self._running[key] = Turn()
        try:
            with self.host.use(name, lambda: load.cancelled):
                pass
        finally:
            self._forget(key, load)

    def stop(self, key: str) -> None:
        """Stop the tab's reply or download, if one is running."""
        if task := self._running.get(key):
            task.cancel()

    def _forget(self, key: str, task: Stoppable) -> None:
        if self._running.get(key) is task:
            del self._running[key]


class _Stopped(Exception):
    """Stop was pressed before the prompt was read, which a long chat can make long."""


def _reply(turn: Turn, model: Model, conversation: Conversation, extend: bool) -> Iterator[TurnState]:
    messages, sampling, reasoning = conversation.prompt(), conversation.sampling, model.reasoning
    opened = reasoning.opened(conversation.system_prompt)
    written = reasoning.pieces(conversation.messages[-1].reply(), opened) if extend else []
    prefix = "".join(piece.text for piece in written)

    def encode(part: Messages) -> list[int]:
        if turn.cancelled:
            raise _Stopped
        return model.encoder.encode_continue(part, written) if extend else model.encoder.encode(part)

    try:
        planned = plan(messages, encode, model.engine.n_ctx, sampling.max_tokens, conversation.left_out)
    except _Stopped:
        yield TurnState(done=True, stats=Stats(finish_reason="cancelled"))
        return
    conversation.left_out = planned.left_out
    before = planned.ids[len(model.encoder.encode(planned.messages[:-1])) :] if extend else []
    # A reply that breaks off is a stopped one: it can be continued, or retried.
    answer = conversation.messages[-1] if extend else Message(role="assistant", content="")
    answer.finish_reason = "cancelled"
    for progress in turn.run(model.engine, planned, sampling, prefix, model.stop):
        answer.write(reasoning.split(progress.text, opened=opened, done=progress.done))
        if any(answer.reply()) and answer is not conversation.messages[-1]:
            conversation.messages.append(answer)
        conversation.tokens = progress.prompt_tokens + progress.generated_tokens
        if progress.done:
            answer.finish_reason = progress.stats.finish_reason
            whole = "".join(piece.text for piece in reasoning.pieces(answer.reply(), opened))
            model.replies.remember(whole, before + progress.stats.ids)
        yield progress
