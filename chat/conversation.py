"""A chat as the page keeps it: what was said, with which settings. Comes back from a browser: checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.engine import Sampling
from core.errors import ChatError
from core.reasoning import Reasoning, Reply
from core.template import REASONING_KEYS


def _whole_characters(text: str) -> str:
    """Replace halves of a character, which JSON can carry and UTF-8 can't."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# Bytes of one chat that are kept: browsers store 5 million characters for a page, encrypted in base 64, and
# other tabs have their chats there too.
MAX_BYTES = 1_500_000

Text = Annotated[str, AfterValidator(_whole_characters)]


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


class Conversation(BaseModel):
    """The chat of one browser tab."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model: str = ""
    system_prompt: Text = ""
    sampling: Sampling = Sampling()
    adapters: dict[str, float] = Field(default_factory=dict)  # strength by name; without any the model's own
    json_schema: dict[str, Any] | None = None  # what replies have to be, where they are to be JSON
    messages: list[Message] = Field(default_factory=list)
    left_out: int = Field(0, ge=0)  # messages at the start that no longer fit the context
    tokens: int = Field(0, ge=0)  # of context that the last turn used
    dropped: int = Field(0, ge=0)  # messages at the start that the browser has no room for

    @classmethod
    def read(cls, stored: Any) -> Conversation:
        """Read what the browser kept; anything that is not a chat of ours becomes an empty one."""
        try:
            conversation = cls.model_validate(stored or {})
        except ValidationError:
            return cls()
        begins_well = not conversation.messages or conversation.messages[0].role == "user"
        return conversation if begins_well else cls()

    def store(self) -> dict[str, Any]:
        """Return what the browser keeps: a message without a thought takes no room for one."""
        stored = self.model_dump()
        for message in stored["messages"]:
            if not (message["reasoning_content"] or message["thinking"]):
                del message["reasoning_content"], message["thinking"]
        return stored

    def shorten(self, limit: int = MAX_BYTES) -> None:
        """Drop the oldest turns until no more than `limit` bytes are to be stored; the last one stays."""
        sizes = [len(message.model_dump_json().encode()) for message in self.messages]
        starts = [i for i, message in enumerate(self.messages) if i and message.role == "user"]
        excess = sum(sizes) - limit
        if excess > 0 and starts:
            first = next((start for start in starts if sum(sizes[:start]) >= excess), starts[-1])
            del self.messages[:first]
            self.left_out, self.dropped = max(0, self.left_out - first), self.dropped + first

    def say(self, text: str) -> None:
        """Add the user's message; a question that never got a reply is replaced."""
        if not text.strip():
            raise ChatError("The message is empty. Type something to send.")
        if self.messages and self.messages[-1].role == "user":
            self.messages.pop()
        self.messages.append(Message(role="user", content=text))

    def retry(self) -> None:
        """Take the last reply back, so that the question before it is answered again."""
        self._require_messages("retry")
        if self.messages[-1].role == "assistant":
            self.messages.pop()

    def clear(self) -> None:
        """Begin anew, with the same settings."""
        self.messages, self.left_out, self.tokens, self.dropped = [], 0, 0, 0

    def use_model(self, name: str) -> None:
        """Go on with the model called `name`, whose context may hold what the one before had to leave out."""
        if name != self.model:
            self.model, self.left_out, self.tokens = name, 0, 0
            self.adapters = {}  # they are of one base

    def undo(self) -> str:
        """Take the last question and its reply back; return the question."""
        self._require_messages("undo")
        self.retry()
        self.tokens = 0
        return self.messages.pop().content

    def edit(self, index: int, text: str) -> None:
        """Ask the question at `index` in other words; what came after it is taken back."""
        if not 0 <= index < len(self.messages) or self.messages[index].role != "user":
            raise ChatError("Only your own messages can be edited.")
        if not text.strip():
            raise ChatError("The edited message is empty; the chat stays as it is.")
        del self.messages[index:]
        self.say(text)

    def can_continue(self) -> bool:
        """Whether the last reply was cut, by its length or by Stop, and a model can go on with it."""
        if self.json_schema is not None:
            return False
        last = self.messages[-1] if self.messages else None
        return last is not None and last.finish_reason in ("length", "cancelled") and any(last.reply()[:2])

    def has_more_than(self, before: Conversation) -> bool:
        """Whether a reply, or a part of one, has been added since `before`."""
        return self.messages != before.messages and self.messages[-1].role == "assistant"

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

    def to_json(self) -> str:
        """The chat as data: `messages` as every chat API has them, the settings beside them."""
        data: dict[str, Any] = {"model": self.model, "sampling": self.sampling.model_dump()}
        data |= {"adapters": self.adapters} if self.adapters else {}
        data |= {"json_schema": self.json_schema} if self.json_schema is not None else {}
        data |= {"messages": self.prompt()}
        return json.dumps(data, ensure_ascii=False, indent=2) + "\n"

    def _require_messages(self, action: str) -> None:
        if not self.messages:
            raise ChatError(f"There is nothing to {action} yet.")


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


def read_file(data: bytes) -> Conversation:
    """Read a chat from a JSON file. Raises as `read_chat` does."""
    try:
        saved = json.loads(data)
    except (ValueError, RecursionError):
        raise ChatError("This file is not JSON. Open one that 'Save as JSON' made.") from None
    return read_chat(saved)


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
