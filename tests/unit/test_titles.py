"""Titles of chats by models: what of a reply is one, and which chats want one."""

from __future__ import annotations

import pytest

from chat.titles import title_in, wants_title
from tests.unit.kept_chats import chat_of, said


@pytest.mark.parametrize(
    ("reply", "title"),
    [
        ("Whales in winter", "Whales in winter"),
        ('  "Whales in winter." \n', "Whales in winter"),
        ("**Title: Whales\tin  winter**", "Whales in winter"),
        ("# Whales", "Whales"),
        ("title: „Wale im Winter“", "Wale im Winter"),
        ("鲸鱼", "鲸鱼"),
        ("one two three four five six", "one two three four five six"),
        ("one two three four five six seven", ""),
        ("Sure! Here it is:\nWhales", ""),
        ("x" * 61, ""),
        ("***", ""),
        ("", ""),
    ],
)
def test_a_title_is_one_short_line_without_what_stands_around_it(reply: str, title: str) -> None:
    assert title_in(reply) == title


def test_only_a_chat_with_one_whole_turn_and_its_automatic_title_wants_another() -> None:
    tree = chat_of("Who?", "Nobody.", title="Who?")
    assert not wants_title(tree)  # the reply may still be written
    tree.nodes[tree.chat.leaf].message.finish_reason = "stop"
    assert wants_title(tree)
    tree.chat.title = "Mine"
    assert not wants_title(tree)
    tree.chat.title = "Who?"
    tree.add(said("And then?"))
    assert not wants_title(tree)
