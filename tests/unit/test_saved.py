"""Chats that come from elsewhere: what the page saves is read again, and so is what chat APIs send."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from chat.conversation import ask, read_chat
from core.errors import ChatError

HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


def test_a_chat_with_its_settings_is_read() -> None:
    """As the page saved it before chats had branches, and as `/chat` takes it."""
    settings = {"model": "m", "sampling": {"temperature": 0.1}, "adapters": {"pirate": 0.5}}
    said = [*HI, {"role": "assistant", "content": "b", "reasoning_content": "so"}]
    messages = [{"role": "system", "content": "Be kind."}, *said]
    chat = read_chat(settings | {"json_schema": {"type": "object"}, "messages": messages})
    assert (chat.model, chat.sampling.temperature, chat.adapters) == ("m", 0.1, {"pirate": 0.5})
    assert chat.json_schema == {"type": "object"}
    assert chat.prompt() == messages


@pytest.mark.parametrize(
    ("messages", "system", "texts"),
    [
        ([], "", []),
        ([{"role": "system", "content": "S"}, *HI], "S", ["Hi"]),
        ([{"role": "developer", "content": "D"}, *HI], "D", ["Hi"]),
        ([{"role": "system", "content": "S"}, {"role": "developer", "content": "D"}], "S\n\nD", []),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}], "", ["ab"]),
        ([{"role": "user", "content": "a", "name": None, "metadata": {}, "tool_calls": []}], "", ["a"]),
    ],
)
def test_messages_as_chat_apis_have_them_are_read(
    messages: list[dict[str, Any]], system: str, texts: list[str]
) -> None:
    chat = read_chat(messages)
    assert chat.system_prompt == system
    assert [message.content for message in chat.messages] == texts


def test_a_thought_is_read_under_each_of_its_names() -> None:
    for key in ("reasoning_content", "reasoning", "thinking"):
        message = {"role": "assistant", "content": "b", key: "so"}
        assert read_chat([*HI, message]).messages[1].reply() == ("so", "b", False)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([*HI, {"role": "system", "content": "S"}], "Message 2 is a system message; it can only come first"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "Message 1 has a part that is not text"),
        (["Hi"], "Message 1 is 'Hi'"),
        ("Hi", "not str"),
    ],
)
def test_what_can_not_be_read_is_refused_with_its_place(messages: Any, reason: str) -> None:
    with pytest.raises(ChatError, match=reason):
        read_chat(messages)


def test_a_key_that_means_something_else_is_refused() -> None:
    with pytest.raises(ValidationError, match="tool_calls"):
        read_chat([{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}])


@pytest.mark.parametrize(
    ("message", "asked"), [("there?", "Hi\n\nthere?"), ("", "Hi"), (" Hi ", "Hi"), ("\n", "Hi")]
)
def test_a_question_at_the_end_is_part_of_what_is_asked(message: str, asked: str) -> None:
    chat = read_chat(HI)
    ask(chat, message)
    assert [(m.role, m.content) for m in chat.messages] == [("user", asked)]
    with pytest.raises(ChatError, match="message is empty"):
        ask(read_chat([*HI, {"role": "assistant", "content": "Hello."}]), " ")
