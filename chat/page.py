"""The page's components, and what each state of a chat makes of them."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from chat import page_html as parts
from chat.conversation import Conversation
from chat.gradio_import import gr
from chat.model_host import Host
from core.engine import Sampling
from core.errors import ChatError

SAMPLING_KEYS = tuple(Sampling.model_fields)

Updates = dict[Any, Any]  # components and what becomes of them


class Page:
    """`chat/screen.py` builds the components; these are the updates that several events share."""

    store: gr.BrowserState
    menu: gr.Dropdown
    chatbot: gr.Chatbot
    status: gr.HTML
    gauge: gr.HTML
    box: gr.Textbox
    system: gr.Textbox
    sliders: list[Any]  # one for each of SAMPLING_KEYS
    retry: gr.Button
    undo: gr.Button
    clear: gr.Button
    open: gr.UploadButton
    extend: gr.Button

    def __init__(self, host: Host) -> None:
        self._host = host

    def settings(self) -> list[Any]:
        """What decides about the next reply, as the inputs of an event."""
        return [self.menu, self.system, *self.sliders]

    def components(self) -> list[Any]:
        """All that events may change."""
        chat = [self.store, self.chatbot, self.status, self.gauge, self.box]
        return [*chat, self.retry, self.undo, self.clear, self.open, self.extend, *self.settings()]

    def show(self, conversation: Conversation) -> Updates:
        """The chat as it is now, which the browser keeps too, as far as it has room."""
        conversation.shorten()
        return self.progress(conversation, writing=False) | {
            self.store: conversation.store(),
            self.extend: gr.Button(visible=conversation.can_continue()),
        }

    def progress(self, conversation: Conversation, writing: bool = True) -> Updates:
        """The chat while a reply is being written."""
        return {
            self.chatbot: parts.display(conversation, writing)[0],
            self.gauge: self._gauge(conversation),
        }

    def restored(self, conversation: Conversation) -> Updates:
        """Everything, from what the browser kept."""
        values = (getattr(conversation.sampling, key) for key in SAMPLING_KEYS)
        return (
            self.show(conversation)
            | dict(zip(self.sliders, values, strict=True))
            | {self.menu: self.choices(conversation.model), self.system: conversation.system_prompt}
        )

    def apply(self, values: tuple[Any, ...], conversation: Conversation) -> None:
        """Take over `settings` as they came from the page. Raises ChatError."""
        model, system, *sampling = values
        try:
            conversation.sampling = Sampling.model_validate(dict(zip(SAMPLING_KEYS, sampling, strict=True)))
            conversation.system_prompt = system or ""
            conversation.use_model(model or self._host.default)
        except ValidationError as error:
            raise ChatError(parts.refusal(error)) from error

    def choices(self, value: str) -> Any:
        """The model menu: a download changes what it says."""
        return gr.Dropdown(choices=self._host.menu(), value=value, interactive=True)

    def busy(self, **box: Any) -> Updates:
        """While a reply is written or a model loaded, Stop is the one thing to press."""
        return {
            self.box: gr.Textbox(submit_btn=False, stop_btn="Stop", **box),
            self.menu: gr.Dropdown(interactive=False),
            self.open: gr.UploadButton(interactive=False),
        } | dict.fromkeys(self._buttons(), gr.Button(interactive=False))

    def idle(self, **box: Any) -> Updates:
        """Ready for the next message. What was typed meanwhile stays in the box."""
        return {
            self.box: gr.Textbox(submit_btn="Send", stop_btn=False, **box),
            self.menu: gr.Dropdown(interactive=True),
            self.open: gr.UploadButton(interactive=True),
        } | dict.fromkeys(self._buttons(), gr.Button(interactive=True))

    def _buttons(self) -> list[Any]:
        return [self.retry, self.undo, self.clear]

    def _gauge(self, conversation: Conversation) -> str:
        entry = self._host.registry.entries.get(conversation.model)
        return parts.gauge_html(conversation.tokens, entry.n_ctx) if entry and conversation.tokens else ""
