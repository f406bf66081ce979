"""What happens when somebody presses something: a handler checks, asks the session, and yields the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from pydantic import ValidationError

from chat import screen_parts as parts
from chat.conversation import Conversation
from chat.engine import Sampling
from chat.errors import ChatError, EngineDied
from chat.session import Sessions
from chat.turn import Progress

SAVE_INTERVAL_S = 2.0  # during a reply: what a reload of the page may lose
SAMPLING_KEYS = tuple(Sampling.model_fields)

Stored = dict[str, Any] | None  # a conversation as the browser keeps it
Page = dict[Any, Any]  # components and what becomes of them


class Handlers:
    """The page's event handlers. `chat/screen.py` builds the components that they update."""

    chatbot: gr.Chatbot
    store: gr.BrowserState
    box: gr.Textbox
    status: gr.HTML
    gauge: gr.HTML
    extend_button: gr.Button
    menu: gr.Dropdown
    system: gr.Textbox
    buttons: dict[str, gr.Button]
    sliders: list[Any]  # one for each of SAMPLING_KEYS

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def send(self, text: str, stored: Stored, request: gr.Request, *settings: Any) -> Iterator[Page]:
        """Answer what was typed."""
        yield from self._change(stored, settings, request, lambda c: c.say(text or ""), text or "")

    def example(
        self, stored: Stored, data: gr.SelectData, request: gr.Request, *settings: Any
    ) -> Iterator[Page]:
        """Answer an example that was picked."""
        yield from self._change(stored, settings, request, lambda c: c.say(data.value["text"]))

    def retry(self, stored: Stored, request: gr.Request, *settings: Any) -> Iterator[Page]:
        """Answer the last question again."""
        yield from self._change(stored, settings, request, Conversation.retry)

    def edit(self, stored: Stored, data: gr.EditData, request: gr.Request, *settings: Any) -> Iterator[Page]:
        """Answer an earlier question in its new words."""
        index = data.index if isinstance(data.index, int) else data.index[0]

        def change(conversation: Conversation) -> None:
            conversation.edit(parts.display(conversation)[1][index], str(data.value))

        yield from self._change(stored, settings, request, change)

    def extend(self, stored: Stored, request: gr.Request, *settings: Any) -> Iterator[Page]:
        """Go on with a reply that was cut."""

        def change(conversation: Conversation) -> None:
            if not conversation.can_continue():
                raise ChatError("The last reply is complete; there is nothing to continue.")

        yield from self._change(stored, settings, request, change, extend=True)

    def undo(self, stored: Stored) -> Page:
        """Take the last question and its reply back; the question returns to the box."""
        conversation = Conversation.read(stored)
        try:
            text = conversation.undo()
        except ChatError as error:
            return {self.status: parts.error_html(str(error))}
        return self._whole(conversation) | {self.box: text, self.status: ""}

    def clear(self, stored: Stored) -> Page:
        """Begin a new chat with the same settings."""
        conversation = Conversation.read(stored)
        conversation.messages, conversation.left_out, conversation.tokens = [], 0, 0
        return self._whole(conversation) | {self.status: "", self.gauge: ""}

    def stop(self, request: gr.Request) -> None:
        """Stop the tab's reply or download. Not queued, or it would wait for what it is to stop."""
        self.sessions.stop(str(request.session_hash))

    def restore(self, stored: Stored) -> Page:
        """Show the chat that the browser kept."""
        conversation = Conversation.read(stored)
        if conversation.model not in self.sessions.host.registry.entries:
            conversation.model = self.sessions.host.default
        names = [getattr(conversation.sampling, key) for key in SAMPLING_KEYS]
        return (
            self._whole(conversation)
            | dict(zip(self.sliders, names, strict=True))
            | {self.menu: self._menu(conversation.model), self.system: conversation.system_prompt}
            | {self.status: parts.note_html(self.sessions.host.warning)}
        )

    def choose(self, name: str, stored: Stored, request: gr.Request) -> Iterator[Page]:
        """Load a model, downloading it if need be, and go on with it; else stay with the one before."""
        conversation = Conversation.read(stored)
        before = conversation.model or self.sessions.host.default
        yield {self.box: self._busy_box(), self.status: parts.note_html(f"Loading {name}…")}
        try:
            for done, total in self.sessions.prepare(str(request.session_hash), name):
                yield {self.status: parts.download_html(name, done, total)}
        except ChatError as error:
            yield {
                self.menu: self._menu(before),
                self.box: self._idle_box(),
                self.status: parts.error_html(f"{error} The chat goes on with {before}."),
            }
            return
        conversation.model = name
        entry = self.sessions.host.registry.entries[name]
        page = self._whole(conversation) | {self.menu: self._menu(name), self.box: self._idle_box()}
        if entry.system_prompt is not None:
            page[self.system] = entry.system_prompt
        for key in entry.sampling.model_fields_set:
            page[self.sliders[SAMPLING_KEYS.index(key)]] = getattr(entry.sampling, key)
        yield page | {self.status: parts.note_html(self.sessions.host.warning or f"{name} is ready.")}

    def export_markdown(self, stored: Stored) -> str:
        return Conversation.read(stored).to_markdown()

    def export_json(self, stored: Stored) -> str:
        return Conversation.read(stored).to_json()

    def leave(self, request: gr.Request) -> None:
        """The tab was closed or reloaded: nobody reads the reply any more."""
        self.sessions.stop(str(request.session_hash))

    def _change(
        self,
        stored: Stored,
        settings: tuple[Any, ...],
        request: gr.Request,
        change: Callable[[Conversation], Any],
        typed: str = "",
        extend: bool = False,
    ) -> Iterator[Page]:
        """Apply `change` to the stored chat and have it answered; on a refusal the chat is as it was."""
        before, conversation = Conversation.read(stored), Conversation.read(stored)
        try:
            self._apply_settings(conversation, settings)
            change(conversation)
            yield self._whole(conversation) | {self.box: self._busy_box()}
            yield from self._reply(conversation, str(request.session_hash), extend)
        except EngineDied as error:
            yield self._whole(conversation) | {
                self.status: parts.error_html(str(error)),
                self.box: self._idle_box(),
            }
        except ChatError as error:
            page = self._whole(before) | {self.status: parts.error_html(str(error))}
            yield page | {self.box: self._idle_box(typed)}

    def _reply(self, conversation: Conversation, key: str, extend: bool) -> Iterator[Page]:
        saved, progress = time.monotonic(), Progress()
        for progress in self.sessions.reply(key, conversation, extend):
            page: Page = {self.status: parts.progress_html(progress)}
            if progress.generated_tokens:
                page[self.chatbot] = parts.display(conversation)[0]
                page[self.gauge] = self._gauge(conversation)
            if time.monotonic() - saved > SAVE_INTERVAL_S:
                saved = time.monotonic()
                page[self.store] = conversation.store()
            yield page
        page = self._whole(conversation) | {self.box: self._idle_box()}
        yield page | {self.status: parts.stats_html(progress.stats)}

    def _apply_settings(self, conversation: Conversation, settings: tuple[Any, ...]) -> None:
        model, system, *values = settings
        try:
            conversation.sampling = Sampling.model_validate(dict(zip(SAMPLING_KEYS, values, strict=True)))
        except ValidationError as error:
            wrong = error.errors()[0]
            name = str(wrong["loc"][0]).replace("_", " ")
            raise ChatError(f"{name} is {wrong['input']!r}: {wrong['msg'].lower()}.") from error
        conversation.model = model or self.sessions.host.default
        conversation.system_prompt = system or ""

    def _whole(self, conversation: Conversation) -> Page:
        return {
            self.chatbot: parts.display(conversation)[0],
            self.store: conversation.store(),
            self.gauge: self._gauge(conversation),
            self.extend_button: gr.Button(visible=conversation.can_continue()),
        }

    def _gauge(self, conversation: Conversation) -> str:
        entry = self.sessions.host.registry.entries.get(conversation.model)
        return parts.gauge_html(conversation.tokens, entry.n_ctx) if entry and conversation.tokens else ""

    def _menu(self, value: str) -> Any:
        return gr.Dropdown(choices=self.sessions.host.menu(), value=value)

    def _busy_box(self) -> Any:
        return gr.Textbox(value="", submit_btn=False, stop_btn=True)

    def _idle_box(self, text: str = "") -> Any:
        return gr.Textbox(value=text, submit_btn=True, stop_btn=False)
