"""A chat as a turn needs it: what was said, with which settings; and chats as programs send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from chat.settings import ChatSettings, Text
from core.errors import ChatError
from core.reasoning import Reasoning, Reply
from core.template import REASONING_KEYS


class Message(BaseModel):
    """One message. `finish_reason` says how a reply ended: 'length' and 'cancelled' ones can be continued.

    A reply's thought is kept apart from its answer, under the name by which templates and APIs know it.
    """

    model_config = ConfigDict(extra="forbid")

    role: Literal["user", "assistant"]
    content: Text
    reasoning_content: Text = ""
    thinking: bool = False  # the reply was cut inside its thought
    finish_reason: Literal["stop", "length", "cancelled", ""] = ""

    @model_validator(mode="after")
    def _fold(self) -> Message:
        """Take a thought out of the content of a reply that came with its marks, as `<think>` has them."""
        if self.role == "assistant" and not self.reasoning_content:
            self.write(Reasoning().split(self.content))
        return self

    def write(self, reply: Reply) -> None:
        """Hold `reply`, thought and answer."""
        self.reasoning_content, self.content, self.thinking = reply

    def reply(self) -> Reply:
        return Reply(self.reasoning_content, self.content, self.thinking)


class Conversation(ChatSettings):
    """What was said on one branch of a chat, and how to answer."""

    messages: list[Message] = Field(default_factory=list)

    def say(self, text: str) -> None:
        """Add the user's message; a question that never got a reply is replaced."""
        if not text.strip():
            raise ChatError("The message is empty. Type something to send.")
        if self.messages and self.messages[-1].role == "user":
            self.messages.pop()
        self.messages.append(Message(role="user", content=text))

    def can_continue(self) -> bool:
        """Whether the last reply was cut, by its length or by Stop, and a model can go on with it."""
        if self.json_schema is not None:
            return False
        last = self.messages[-1] if self.messages else None
        return last is not None and last.finish_reason in ("length", "cancelled") and any(last.reply()[:2])

    def prompt(self) -> list[dict[str, str]]:
        """The messages for the model, the system message first if there is one."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt.strip() else []
        return system + [_for_template(message) for message in self.messages]

    def to_markdown(self) -> str:
        """The chat as a document."""
        parts = [f"# Chat with {self.model}"]
        parts += [f"## System\n\n{self.system_prompt}"] if self.system_prompt.strip() else []
        for message in self.messages:
            parts.append(f"## {'You' if message.role == 'user' else self.model}")
            if message.reasoning_content:
                fold = "<details>\n<summary>Thought</summary>\n\n{}\n\n</details>"
                thought = message.reasoning_content.replace("</details", "&lt;/details")
                parts.append(fold.format(thought))
            parts += [message.content] if message.content else []
        return "\n\n".join(parts) + "\n"


def _for_template(message: Message) -> dict[str, str]:
    """Return a message as templates and chat APIs have it."""
    thought = {"reasoning_content": message.reasoning_content} if message.reasoning_content else {}
    return {"role": message.role, "content": message.content} | thought


SYSTEM_ROLES = ("system", "developer")  # OpenAI calls it developer since its o1
_PARTS = ("text", "input_text", "output_text")  # content in parts: what they are called


def read_chat(saved: Any) -> Conversation:
    """Read a saved chat, `{"model", "sampling", "messages"}`, or its messages alone.

    System messages come first and are one. Raises ChatError, and pydantic's ValidationError for a value that
    a conversation can't have.
    """
    saved = {"messages": saved or []} if not isinstance(saved, Mapping) else dict(saved)
    messages = saved.pop("messages", None)
    if not isinstance(messages, list):
        raise ChatError(f"A chat is a list of messages, not {type(messages).__name__}.")
    system, chat = [], []
    for number, message in enumerate(messages, 1):
        read = _message(number, message)
        if read["role"] not in SYSTEM_ROLES:
            chat.append(read)
        elif chat:
            raise ChatError(f"Message {number} is a {read['role']} message; it can only come first.")
        else:
            system.append(read["content"])
    system += [saved.pop("system_prompt", None) or ""]
    if others := [text for text in system if not isinstance(text, str)]:
        raise ChatError(f"A system message is text, not {type(others[0]).__name__}.")
    prompt = "\n\n".join(text for text in system if text.strip())
    return Conversation.model_validate(saved | {"system_prompt": prompt, "messages": chat})


def ask(conversation: Conversation, message: str) -> None:
    """Add the user's `message`, to a question at the end that has no reply; it may then be empty.

    Raises ChatError.
    """
    last = conversation.messages[-1] if conversation.messages else None
    if last and last.role == "user":
        again = message.strip() in ("", last.content.strip())  # clients that send it in both places
        message = last.content if again else f"{last.content}\n\n{message}"
    conversation.say(message)


def _message(number: int, message: Any) -> dict[str, Any]:
    """Return one message with text for its content, without the keys that say nothing."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(role, str) or not role:
        raise ChatError(f"Message {number} is {message!r:.80}; a message has a role and content.")
    kept = {key: value for key, value in message.items() if value not in (None, "", [], {})}
    thought = next((kept[key] for key in REASONING_KEYS if key in kept), None)
    kept = {key: value for key, value in kept.items() if key not in REASONING_KEYS}
    kept["content"] = _text(number, message.get("content"))
    return kept | ({"reasoning_content": thought} if thought else {})


def _text(number: int, content: Any) -> Any:
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return "" if content is None else content
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not (isinstance(part, str) or (kind in _PARTS and isinstance(part.get("text"), str))):
            raise ChatError(f"Message {number} has a part that is not text: {part!r:.80}; send text only.")
    return "".join(part if isinstance(part, str) else part["text"] for part in content)
