"""Half a character (a lone surrogate), which JSON can carry, becomes a sign that a chat can bear."""

from __future__ import annotations

import json

import pytest

from chat.conversation import Conversation

HALF = json.loads(r'"a\ud800b"')


@pytest.mark.parametrize(
    ("text", "expected"), [(HALF, "a\ufffdb"), (json.loads(r'"\ud83d\ude00"'), "😀"), ("\x00é😀", "\x00é😀")]
)
def test_what_is_typed_can_be_sent_on(text: str, expected: str) -> None:
    conversation = Conversation(system_prompt=text)
    conversation.say(text)
    conversation.system_prompt = text
    assert conversation.prompt() == [
        {"role": "system", "content": expected},
        {"role": "user", "content": expected},
    ]
    json.dumps(conversation.model_dump(mode="json"), ensure_ascii=False).encode()
