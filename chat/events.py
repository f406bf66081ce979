"""What happens when somebody presses something: a handler checks, asks the session, and yields the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from chat import page_html as parts
from chat.context import TurnState
from chat.conversation import Conversation, ask, read_chat, read_file
from chat.gradio_import import api, gr
from chat.page import SAMPLING_KEYS, Page, Updates
from chat.page_html import refusal, typed
from chat.reply import Sessions
from core.engine import Stats
from core.errors import ChatError, EngineDied
from core.reasoning import Reasoning, Reply

SAVE_INTERVAL_S = 2.0  # during a reply: what a reload of the page may lose

Stored = dict[str, Any] | None  # a conversation as the browser keeps it


class Busy(ChatError):
    """The tab is doing something already, and that shows itself on the page."""


class Handlers:
    """The page's event handlers. A tab does one thing at a time."""

    def __init__(self, sessions: Sessions, page: Page) -> None:
        self.sessions = sessions
        self.page = page
        self._busy: dict[str, object] = {}  # tabs that wait for a reply or a model

    def send(self, text: str, stored: Stored, request: gr.Request, *settings: Any) -> Iterator[Updates]:
        """Answer what was typed."""
        yield from self._change(stored, settings, request, lambda c: c.say(text or ""), text or "")

    def example(
        self, stored: Stored, data: gr.SelectData, request: gr.Request, *settings: Any
    ) -> Iterator[Updates]:
        """Answer an example that was picked."""
        yield from self._change(stored, settings, request, lambda c: c.say(data.value["text"]))

    def retry(self, stored: Stored, request: gr.Request, *settings: Any) -> Iterator[Updates]:
        """Answer the last question again."""
        yield from self._change(stored, settings, request, Conversation.retry)

    def edit(
        self, stored: Stored, data: gr.EditData, request: gr.Request, *settings: Any
    ) -> Iterator[Updates]:
        """Answer an earlier question in its new words."""
        index = data.index if isinstance(data.index, int) else data.index[0]

        def change(conversation: Conversation) -> None:
            conversation.edit(parts.display(conversation)[1][index], typed(str(data.value)))

        yield from self._change(stored, settings, request, change)

    def extend(self, stored: Stored, request: gr.Request, *settings: Any) -> Iterator[Updates]:
        """Go on with a reply that was cut."""

        def change(conversation: Conversation) -> None:
            if not conversation.can_continue():
                raise ChatError("The last reply is complete; there is nothing to continue.")

        yield from self._change(stored, settings, request, change, extend=True)

    def undo(self, draft: str, stored: Stored, request: gr.Request) -> Updates:
        """Take the last question and its reply back; the question returns to an empty box."""
        conversation = Conversation.read(stored)
        try:
            with self._only(request):
                text = conversation.undo()
        except ChatError as error:
            return {self.page.status: parts.error_html(str(error))}
        return self.page.show(conversation) | {self.page.box: draft or text, self.page.status: ""}

    def clear(self, stored: Stored, request: gr.Request) -> Updates:
        """Begin a new chat with the same settings."""
        conversation = Conversation.read(stored)
        try:
            with self._only(request):
                conversation.clear()
        except ChatError as error:
            return {self.page.status: parts.error_html(str(error))}
        return self.page.show(conversation) | {self.page.status: ""}

    def stop(self, request: gr.Request) -> None:
        """Stop the tab's reply or download. Not queued, or it would wait for what it is to stop."""
        self.sessions.stop(str(request.session_hash))

    def leave(self, request: gr.Request) -> None:
        """The tab was closed or reloaded: nobody reads the reply any more."""
        self.sessions.stop(str(request.session_hash))

    def restore(self, stored: Stored) -> Updates:
        """Show the chat that the browser kept."""
        conversation = Conversation.read(stored)
        if conversation.model not in self.sessions.host.registry.entries:
            conversation.use_model(self.sessions.host.default)
        status = {self.page.status: parts.note_html(self.sessions.host.warning(conversation.model))}
        new = self._defaults(conversation.model) if stored is None and conversation.model else {}
        return self.page.restored(conversation) | new | status

    def choose(self, name: str, stored: Stored, request: gr.Request) -> Iterator[Updates]:
        """Load a model, downloading it if need be, and go on with it; else stay with the one before."""
        conversation, page = Conversation.read(stored), self.page
        before = conversation.model or self.sessions.host.default
        try:
            with self._only(request):
                yield page.busy() | {page.status: parts.note_html(f"Loading {name}…")}
                for done, total in self.sessions.prepare(str(request.session_hash), name):
                    yield {page.status: parts.download_html(name, done, total)}
        except ChatError as error:
            told = f"{parts.sentence(str(error))} The chat goes on with {before}."
            yield page.idle() | {page.menu: page.choices(before), page.status: parts.error_html(told)}
            return
        conversation.use_model(name)
        ready = parts.note_html(self.sessions.host.warning(name) or f"{name} is ready.")
        yield page.idle() | page.show(conversation) | self._defaults(name) | {page.status: ready}

    def _defaults(self, name: str) -> Updates:
        """The model with what its entry says about how to use it."""
        entry, page = self.sessions.host.registry.entries[name], self.page
        updates: Updates = {page.menu: page.choices(name)}
        if entry.system_prompt is not None:
            updates[page.system] = entry.system_prompt
        for key in entry.sampling.model_fields_set:
            updates[page.sliders[SAMPLING_KEYS.index(key)]] = getattr(entry.sampling, key)
        return updates

    def export_markdown(self, stored: Stored) -> str:
        return Conversation.read(stored).to_markdown()

    def export_json(self, stored: Stored) -> str:
        return Conversation.read(stored).to_json()

    def open(self, data: bytes | None, stored: Stored, request: gr.Request) -> Updates:
        """Go on with a chat that was saved as JSON; it takes the place of the one that is there."""
        page, host = self.page, self.sessions.host
        try:
            with self._only(request):
                conversation = read_file(data or b"")
        except ValidationError as error:
            return {page.status: parts.error_html(f"This file can't be opened: {parts.refusal(error)}")}
        except ChatError as error:
            return {page.status: parts.error_html(str(error))}
        note = "The chat was opened."
        if (wanted := conversation.model or host.default) not in host.registry.entries:
            note = (
                f"The chat was opened. Its model {wanted} is not in the menu; it goes on with {host.default}."
            )
            wanted = host.default
        conversation.use_model(wanted)
        return page.restored(conversation) | {page.status: parts.note_html(note)}

    @contextmanager
    def _only(self, request: gr.Request) -> Iterator[None]:
        """Keep the tab from a second thing at a time. Raises ChatError when it is busy."""
        key, mark = str(request.session_hash), object()
        if self._busy.setdefault(key, mark) is not mark:
            raise Busy("A reply is being written. Stop it first, or wait until it is complete.")
        try:
            yield
        finally:
            del self._busy[key]

    def _change(
        self,
        stored: Stored,
        settings: tuple[Any, ...],
        request: gr.Request,
        change: Callable[[Conversation], Any],
        typed: str = "",
        extend: bool = False,
    ) -> Iterator[Updates]:
        """Apply `change` to the stored chat and have it answered; on a refusal the chat is as it was."""
        before, conversation, page = Conversation.read(stored), Conversation.read(stored), self.page
        try:
            with self._only(request):
                page.apply(settings, conversation)
                change(conversation)
                stats = yield from self._answer(conversation, request, extend)
            # Only now, when the tab is free: whoever sees this page may press something at once.
            yield page.show(conversation) | page.idle() | {page.status: parts.stats_html(stats)}
        except Busy as error:
            yield {page.status: parts.error_html(str(error))}
        except ChatError as error:
            status = {page.status: parts.error_html(str(error))}
            if isinstance(error, EngineDied) or conversation.has_more_than(before):
                yield page.show(conversation) | page.idle() | status
            else:
                yield page.show(before) | page.idle(**({"value": typed} if typed else {})) | status
        except Exception:
            yield page.show(conversation) | page.idle()
            raise  # a bug: Gradio says so, and the page stays usable

    def _answer(
        self, conversation: Conversation, request: gr.Request, extend: bool
    ) -> Generator[Updates, None, Stats]:
        page, saved, progress = self.page, time.monotonic(), TurnState()
        # The box is emptied here and never again: what is typed during the reply is the next message.
        waiting = {page.status: parts.progress_html(progress)}
        yield page.show(conversation) | page.busy(value="") | waiting
        key, user = str(request.session_hash), user_of(request)
        for progress in self.sessions.reply(key, conversation, extend, user):
            updates: Updates = {page.status: parts.progress_html(progress)}
            if progress.generated_tokens:
                updates |= page.progress(conversation)
            if time.monotonic() - saved > SAVE_INTERVAL_S:
                saved = time.monotonic()
                updates[page.store] = conversation.store()
            yield updates
        return progress.stats


def user_of(request: gr.Request) -> str:
    """Who asks, for the bound that each has in line: a name, else the address that the request came from."""
    return request.username or (request.client.host if request.client else "")


def add_api(sessions: Sessions) -> None:
    """Add `/chat` to the Blocks that is being built."""

    def chat(
        message: str,
        history: list[dict[str, Any]] | None = None,
        system_prompt: str = "",
        model: str = "",
        max_tokens: int = 2048,
        temperature: float = 0.7,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        repeat_penalty: float = 1.1,
        seed: int | None = None,
        thoughts: bool = False,
        request: gr.Request | None = None,
    ) -> Iterator[str]:
        """Answer `message` after `history` (role and content); yields the reply so far.

        `history` may begin with a system message, and may be all of a chat that the page saved as JSON: then
        its model and its settings count. A user message at its end belongs to `message`, which may then be
        empty. With `thoughts`, the model's thought comes first, between <think>
        and </think>.
        """
        sampling = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "seed": seed,
        }
        try:
            given = {"model": model or sessions.host.default, "sampling": sampling}
            given["system_prompt"] = system_prompt
            saved: Any = history
            saved = saved if isinstance(saved, dict) else {"messages": saved or []}
            conversation = read_chat(given | saved)
            if not isinstance(message, str):
                raise ChatError(f"message is {message!r}, not a text.")
            ask(conversation, message)
            key = f"api-{request.session_hash if request else id(conversation)}"
            for _ in sessions.reply(key, conversation, user=user_of(request) if request else ""):
                last = conversation.messages[-1]
                reply = last.reply() if last.role == "assistant" else Reply("", "", False)
                yield Reasoning().text(reply) if thoughts else reply.answer
            if reply.thinking and not thoughts:
                raise ChatError(
                    "The reply was cut while the model was still thinking. Raise max_tokens, or ask for its "
                    "thoughts with thoughts=true."
                )
        except ValidationError as error:
            raise gr.Error(refusal(error), print_exception=False) from error
        except ChatError as error:
            raise gr.Error(str(error), print_exception=False) from error

    api(chat, api_name="chat", concurrency_limit=None)
