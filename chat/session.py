"""From a stored conversation to one with a reply more: what the page and the API share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from chat.conversation import Conversation, Message
from chat.host import Host, Model
from chat.registry import hub_source
from chat.turn import Progress, Turn, plan


class Stoppable(Protocol):
    def cancel(self) -> None: ...


class Sessions:
    """What is running, one reply or download per browser tab, so that each can be stopped from its own page."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._running: dict[str, Stoppable] = {}

    def reply(self, key: str, conversation: Conversation, extend: bool = False) -> Iterator[Progress]:
        """Answer the last message of `conversation`, or `extend` its last reply; updates it as the text comes.

        `key` names the tab for `stop`. Raises ChatError; what has been written by then stays in the conversation.
        """
        turn = self._running[key] = Turn()
        try:
            yield Progress()  # the model may have to be loaded, or another chat's turn may come first
            with self.host.use(conversation.model) as model:
                yield from _reply(turn, model, conversation, extend)
        finally:
            self._forget(key, turn)

    def prepare(self, key: str, name: str) -> Iterator[tuple[int, int | None]]:
        """Download the model called `name` if it is not on this disk, yielding (bytes done, bytes in all), and load it.

        Raises ChatError: no network, no such file, no room, not a model that runs here, or stopped.
        """
        registry = self.host.registry
        entry = registry.entries.get(name)
        if entry and registry.locate(entry) is None and (source := hub_source(entry)):
            from chat.download import Download  # huggingface_hub is slow to import

            task = self._running[key] = Download(source)
            try:
                yield from task
            finally:
                self._forget(key, task)
        with self.host.use(name):
            pass

    def stop(self, key: str) -> None:
        """Stop the tab's reply or download, if one is running."""
        if task := self._running.get(key):
            task.cancel()

    def _forget(self, key: str, task: Stoppable) -> None:
        if self._running.get(key) is task:
            del self._running[key]


def _reply(turn: Turn, model: Model, conversation: Conversation, extend: bool) -> Iterator[Progress]:
    messages, sampling = conversation.prompt(), conversation.sampling
    prefix = messages[-1]["content"] if extend else ""
    encode = model.encoder.encode_continue if extend else model.encoder.encode
    planned = plan(messages, encode, model.engine.n_ctx, sampling.max_tokens, conversation.left_out)
    conversation.left_out = planned.left_out
    before = planned.ids[len(model.encoder.encode(planned.messages[:-1])) :] if extend else []
    # A reply that breaks off is a stopped one: it can be continued, or retried.
    answer = conversation.messages[-1] if extend else Message(role="assistant", content="")
    answer.finish_reason = "cancelled"
    for progress in turn.run(model.engine, planned, sampling, prefix):
        answer.content = progress.text
        if answer.content and answer is not conversation.messages[-1]:
            conversation.messages.append(answer)
        conversation.tokens = progress.prompt_tokens + progress.generated_tokens
        if progress.done:
            answer.finish_reason = progress.stats.finish_reason
            model.remember(progress.text, before + progress.stats.ids)
        yield progress
