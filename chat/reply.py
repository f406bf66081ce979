"""From a stored conversation to one with a reply more: what the page and the API share."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol, TypeVar

from chat.context import Plan, Turn, TurnState, check_size, plan
from chat.conversation import Conversation, Message
from chat.model_host import Host
from chat.schema_reading import SchemaError
from chat.structured import Structured, structured
from chat.turn_queue import Ticket, Waiting
from core.download import download
from core.engine import Request, Sampling, Stats
from core.entry import Source, hub_source
from core.errors import ChatError, EngineDied, NoSuchToken, Stopped, TooLong
from core.lora import strengths
from core.model import Model
from core.prompt import Messages
from core.reasoning import Reply

PROGRESS_INTERVAL_S = 0.25
STOP_LIMIT_S = 1.0  # in which a download that was stopped says how far it is


T = TypeVar("T")
Admit = Callable[[Plan, Sampling], Iterator[TurnState]]  # waits until a prompt and its reply fit
Write = Callable[[Turn, Model, Admit], Iterator[TurnState]]


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
        self._yielding: set[str] = set()  # keys of replies that give way to all others

    def reply(
        self,
        key: str,
        conversation: Conversation,
        extend: bool = False,
        user: str = "",
        stops: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> Iterator[TurnState]:
        """Answer the last message of `conversation`, or `extend` its last reply, and update it meanwhile.

        `key` names the tab for `stop`; `user` says who asks, for the bound that each has. One of the texts
        `stops` ends the reply, `logprobs` asks for so many likeliest tokens at each place. Raises ChatError
        (NoSuchModel and QueueFull at once, and what is wrong with its schema or adapters); what was written
        by then stays in the conversation.
        """
        if entry := self.host.registry.entries.get(conversation.model):
            strengths(entry.adapters, conversation.adapters)
        schema = conversation.json_schema
        held = None if schema is None else structured(schema)
        if held and extend:
            raise SchemaError("A reply that has to be JSON can't be continued. Retry it, with more tokens.")
        write = functools.partial(
            _reply, conversation=conversation, extend=extend, held=held, stops=stops, logprobs=logprobs
        )
        return self._turn(key, conversation.model, user, write)

    def reply_when_idle(self, key: str, conversation: Conversation) -> Iterator[TurnState]:
        """As `reply`, but not begun while anybody is answered or waits, and stopped when somebody comes."""
        queue = self.host.queue
        if queue.waiting or queue.running:
            return
        self._yielding.add(key)
        try:
            yield from self.reply(key, conversation)
        finally:
            self._yielding.discard(key)

    def complete(
        self,
        key: str,
        name: str,
        prompt: str | Sequence[int],
        sampling: Sampling,
        user: str = "",
        stops: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> Iterator[TurnState]:
        """Go on with `prompt`, a text or token ids, by the model called `name`; the rest as in `reply`."""
        write = functools.partial(_complete, prompt=prompt, sampling=sampling, stops=stops, logprobs=logprobs)
        return self._turn(key, name, user, write)

    def _turn(self, key: str, name: str, user: str, write: Write) -> Iterator[TurnState]:
        """Stand in line for the model called `name`; then `write`, once more if the engine dies too early."""
        if key not in self._yielding:
            self._hurry()
        turn = self._running[key] = Turn()
        queue, progress, ended = self.host.queue, TurnState(), "cancelled"
        try:
            ticket = self.host.join(name, user, lambda: turn.cancelled)
            try:
                yield progress
                for last in (False, True):
                    try:
                        model = yield from _told(self.host.enter(ticket))
                        for progress in write(turn, model, functools.partial(self._admit, ticket, model)):
                            yield progress
                        break
                    except EngineDied:
                        if last or progress.generated_tokens:
                            raise
                        self.host.return_to_line(ticket)
                ended = progress.stats.finish_reason
            finally:
                self.host.leave(ticket)
        except ChatError as error:
            ended = "cancelled" if isinstance(error, Stopped) else "error"
            raise
        finally:
            self._forget(key, turn)
            queue.count(ended, progress.stats)

    def _admit(self, ticket: Ticket, model: Model, planned: Plan, sampling: Sampling) -> Iterator[TurnState]:
        tokens = min(len(planned.ids) + sampling.max_tokens, model.engine.n_ctx)
        return _told(self.host.admit(ticket, tokens))

    def prepare(self, key: str, name: str) -> Iterator[tuple[int, int | None]]:
        """Load the model called `name`, downloading it first if need be, with (bytes done, bytes in all).

        Raises ChatError: no network, no such file, no room, not a model that runs here, or stopped.
        """
        self._hurry()
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
            with self.host.use(name, lambda: load.cancelled, computes=False):
                pass
        finally:
            self._forget(key, load)

    def stop(self, key: str) -> None:
        """Stop the tab's reply or download, if one is running."""
        if task := self._running.get(key):
            task.cancel()
            self.host.queue.wake()  # it may stand in line

    def _hurry(self) -> None:
        """Somebody comes: stop what gives way."""
        for key in list(self._yielding):
            self.stop(key)

    def _forget(self, key: str, task: Stoppable) -> None:
        if self._running.get(key) is task:
            del self._running[key]


def _told(steps: Generator[Waiting, None, T]) -> Generator[TurnState, None, T]:
    """Go through `steps`, and tell of each place in line."""
    while True:
        try:
            waiting = next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        yield TurnState(waiting=waiting)


class _Stopped(Exception):
    """Stop was pressed before the prompt was read, which a long chat can make long."""


def _complete(
    turn: Turn,
    model: Model,
    admit: Admit,
    prompt: str | Sequence[int],
    sampling: Sampling,
    stops: Sequence[str],
    logprobs: int | None,
) -> Iterator[TurnState]:
    n_ctx = model.engine.n_ctx
    if isinstance(prompt, str):
        check_size("The prompt", len(prompt.encode()), n_ctx)
        ids = model.encoder.encode_text(prompt)
    else:
        ids = list(prompt)
    if unknown := [i for i in ids if not 0 <= i < model.file.n_vocab]:
        raise NoSuchToken(f"{model.name} has {model.file.n_vocab:,} tokens; there is no token {unknown[0]}.")
    if len(ids) >= n_ctx:
        raise TooLong(f"The prompt has {len(ids):,} tokens; the model's context is {n_ctx:,}. Shorten it.")
    planned = Plan([{"role": "user", "content": ""}], ids, 0)
    yield from admit(planned, sampling)
    yield from turn.run(
        model.engine, planned, Request(ids, sampling, logprobs=logprobs), stops=stops, raw=True
    )


def _reply(
    turn: Turn,
    model: Model,
    admit: Admit,
    conversation: Conversation,
    extend: bool,
    held: Structured | None,
    stops: Sequence[str],
    logprobs: int | None,
) -> Iterator[TurnState]:
    messages, sampling, reasoning = conversation.prompt(), conversation.sampling, model.reasoning
    messages = held.instruct(messages) if held else messages
    opened = reasoning.opened(conversation.system_prompt)
    written = reasoning.pieces(conversation.messages[-1].reply(), opened) if extend else []
    if held and opened:  # its thought is closed: the reply begins with the JSON
        messages = [*messages, {"role": "assistant", "content": ""}]
        written = reasoning.pieces(Reply("", "", False), opened)
    begun = extend or bool(written)
    prefix = "".join(piece.text for piece in written)

    def encode(part: Messages) -> list[int]:
        if turn.cancelled:
            raise _Stopped
        return model.encoder.encode_continue(part, written) if begun else model.encoder.encode(part)

    try:
        planned = plan(messages, encode, model.engine.n_ctx, sampling.max_tokens, conversation.left_out)
    except _Stopped:
        yield TurnState(done=True, stats=Stats(finish_reason="cancelled"))
        return
    yield from admit(planned, sampling)
    conversation.left_out = planned.left_out
    before = planned.ids[len(model.encoder.encode(planned.messages[:-1])) :] if begun else []
    # A reply that breaks off is a stopped one: it can be continued, or retried.
    answer = conversation.messages[-1] if extend else Message(role="assistant", content="")
    answer.finish_reason = "cancelled"
    grammar, schema = (held.grammar, json.dumps(held.schema)) if held else ("", "")
    chat = str(hash((conversation.system_prompt, conversation.messages[0].content)))
    request = Request(planned.ids, sampling, grammar, conversation.adapters, logprobs, chat, schema)
    stops = [stop for stop in (model.stop, *stops) if stop]
    for progress in turn.run(model.engine, planned, request, prefix, stops):
        answer.write(reasoning.split(progress.text, opened=opened, done=progress.done))
        if any(answer.reply()) and answer is not conversation.messages[-1]:
            conversation.messages.append(answer)
        conversation.tokens = progress.prompt_tokens + progress.generated_tokens
        if progress.done:
            answer.finish_reason = progress.stats.finish_reason
            progress.stats.fault = held.fault(answer.content, answer.finish_reason) if held else ""
            whole = "".join(piece.text for piece in reasoning.pieces(answer.reply(), opened))
            model.replies.remember(whole, before + progress.stats.ids)
        yield progress
