"""Reads chats that come from elsewhere: the files that the page saves, messages as chat APIs have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from chat.conversation import Conversation
from chat.render import REASONING_KEYS
from core.errors import ChatError

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
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
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
