"""Chats that come from elsewhere: what the page saves is read again, and so is what chat APIs send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from chat.conversation import Conversation, ask, read_chat, read_file
from core.engine import Sampling
from core.errors import ChatError

HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


def test_what_the_page_saves_is_read_again() -> None:
    chat = Conversation(model="m", system_prompt="Be kind.", sampling=Sampling(temperature=0.1, seed=5))
    chat.say("a")
    chat.messages += read_chat([{"role": "assistant", "content": "<think>so</think>b"}]).messages
    chat.adapters, chat.json_schema = {"pirate": 0.5}, {"type": "object"}
    again = read_chat(json.loads(chat.to_json()))
    assert again == chat
    assert again.messages[1].reply() == ("so", "b", False)
    assert read_file(chat.to_json().encode()) == chat


@pytest.mark.parametrize("data", [b"", b"# Chat", b"\xff\xfe\x00", b"[" * 100_000], ids=range(4))
def test_a_file_that_is_not_json_is_told(data: bytes) -> None:
    with pytest.raises(ChatError, match="This file is not JSON"):
        read_file(data)


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
