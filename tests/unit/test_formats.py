"""Chats that go out as files and come in again, and files that hold none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chat.conversation import Conversation
from chat.formats import Imported, read_chats, to_json, to_markdown, to_training_jsonl
from chat.tree import Chat, Compared, Tree
from core.errors import ChatError
from tests.unit.branched_chat import tree


def shape(made: Tree) -> Any:
    """All of a chat but its ids, which are new where a file comes in."""
    places = {"": -1} | {name: place for place, name in enumerate(made.nodes)}
    rows = made.rows()
    chat = rows["chat"] | {"id": "", "leaf": places[rows["chat"]["leaf"]]}
    return chat, [row | {"id": "", "parent": places[row["parent"]]} for row in rows["messages"]]


def test_what_goes_out_comes_in_again_whole() -> None:
    made = [tree(), tree(), Tree(Chat(title="nothing said"))]
    read = read_chats(to_json(made).encode())
    assert [shape(one) for one in read] == [shape(one) for one in made]
    assert read.told() == "3 chats came in."
    again = read_chats(to_json(read).encode())
    assert [shape(one) for one in again] == [shape(one) for one in made]


def test_a_chat_that_comes_in_has_new_ids_but_for_its_owner() -> None:
    """Who knows a chat's id can follow a reply in it; and a message has one place only."""
    made = tree()
    data = to_json([made, made]).encode()
    others = read_chats(data)
    names = [name for one in (made, *others) for name in (one.chat.id, *one.nodes)]
    assert len({*names}) == len(names)
    own = read_chats(data, own=[made.chat.id])
    assert own[0].rows() == made.rows()
    assert own[1].chat.id != made.chat.id
    alone = read_chats(json.dumps(made.rows()).encode())  # as GET /chats/ID gives it
    assert shape(alone[0]) == shape(made)


def test_two_replies_that_wait_for_a_vote_come_in_as_such() -> None:
    made = tree()
    nodes = made.branch()[-1].id, next(n.id for n in made.nodes.values() if n.message.content == "In Rom.")
    made.chat.compared = Compared(nodes=nodes, blind=True)
    [read] = read_chats(to_json([made]).encode())
    assert [node.message.content for node in read.pair()] == ["In Rome.", "In Rom."]
    assert read.chat.compared
    assert read.chat.compared.blind


def test_a_chat_that_was_saved_before_there_were_branches_comes_in() -> None:
    settings = {"model": "m", "system_prompt": "Be kind.", "adapters": {"x": 0.5}, "sampling": {"seed": 3}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>t</think>b"}]
    [read] = read_chats(json.dumps(settings | {"messages": messages}).encode())
    chat = Conversation.model_validate(settings | {"messages": messages})
    assert read.conversation() == chat
    assert read.chat.title == "a"
    [bare] = read_chats(json.dumps(messages).encode())
    assert [node.message.content for node in bare.branch()] == ["a", "b"]


def test_messages_of_one_side_in_a_row_are_joined_and_told() -> None:
    roles = ("assistant", "user", "user", "assistant", "assistant", "user")
    saved = [{"role": role, "content": text} for role, text in zip(roles, "abcdef", strict=True)]
    read = read_chats(json.dumps(saved).encode())
    assert [node.message.content for node in read[0].branch()] == ["b\n\nc", "d\n\ne", "f"]
    assert "messages joined with the one before them, of the same side (2)" in read.told()
    assert "replies before the first question left out (1)" in read.told()


def test_lines_are_read() -> None:
    line = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    read = read_chats(f"{line}\n\n{line}\n{{cut".encode())
    assert len(read) == 2
    assert read.told() == "2 chats came in. Not as in the file: lines that are no JSON left out (1)."
    assert len(read_chats(b"\xef\xbb\xbf" + line.encode())) == len(read_chats(line.encode("utf-16"))) == 1


ROWS = tree().rows()
CIRCLE = ROWS | {"messages": [ROWS["messages"][0] | {"parent": ROWS["messages"][0]["id"]}]}
BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no JSON"),
    "no text": (b"\xff\x00\xfe" * 9, "no JSON"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "no JSON"),
    "words": (b"Dear Ada,\nhello", "no JSON"),
    "cut": (json.dumps(ROWS).encode()[:-9], "no JSON"),
    "lists in lists": (b"[" * 10**6, "nested too deep|no JSON"),
    "whole lists in lists": (b"[" * 10**5 + b"]" * 10**5, "nested too deep"),
    "objects in objects": (b'{"a":' * 10**6, "nested too deep|no JSON"),
    "a line nested too deep": (b'{"a": 1}\n' + b"[" * 10**6, "nested too deep|kind"),
    "a number of 5,000 digits": (b"1" * 5_000, "no JSON"),
    "no number": (b'{"messages": NaN}', "no JSON"),
    "null": (b"null", "kind"),
    "a list of nothing": (b"[]", "No chat could be read"),
    "numbers": (b"[1, 2]", "kind"),
    "an object": (b'{"a": 1}', "kind"),
    "messages that are none": (b'{"messages": {}}', "kind"),
    "no messages": (b'{"messages": []}', "no messages"),
    "a message that is none": (b'{"messages": [3]}', "has a role"),
    "a role that is none": (b'{"messages": [{"role": "", "content": "x"}]}', "has a role"),
    "a system message of no text": (b'{"messages": [{"role": "system", "content": 3}]}', "not int"),
    "a system prompt of no text": (b'{"messages": [], "system_prompt": {"a": 1}}', "not dict"),
    "another role": (b'{"messages": [{"role": "tool", "content": "x"}]}', "role"),
    "a setting that none is": (b'{"messages": [], "sampling": {"temperature": 99}}', "temperature"),
    "an unknown setting": (b'{"messages": [], "colour": "red"}', "colour"),
    "a newer file": (b'{"tune2chat": 2, "chats": []}', "newer version"),
    "no chats": (b'{"tune2chat": 1}', "no list of chats"),
    "another number": (b'{"tune2chat": true, "chats": []}', "No chat could be read"),
    "no version": (b'{"tune2chat": "x", "chats": []}', "no list of chats"),
    "a circle": (json.dumps({"tune2chat": 1, "chats": [CIRCLE]}).encode(), "beginning is missing"),
    "two of one id": (json.dumps(ROWS | {"messages": ROWS["messages"][:1] * 2}).encode(), "one id"),
    "an archive, which the page unpacks": (b"PK\x03\x04" + bytes(99), "no JSON"),
}


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_what_is_no_file_of_chats_gets_one_sentence(bad: str) -> None:
    data, reason = BAD[bad]
    with pytest.raises(ChatError, match=reason) as refused:
        read_chats(data)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_a_broken_chat_among_others_is_left_out_and_told() -> None:
    read = read_chats(json.dumps({"tune2chat": 1, "chats": [CIRCLE, ROWS, 3]}).encode())
    assert len(read) == 1
    assert "left out: This chat has messages whose beginning is missing" in read.told()
    assert "left out: entries of a kind" in read.told()
    many = [{"chat": {f"key{n}": 1}, "messages": []} for n in range(99)]
    assert len(read_chats(json.dumps([ROWS, *many]).encode()).told()) < 1_000


def test_what_came_in_by_the_pieces_of_a_file_is_told_as_one() -> None:
    came = Imported()
    for _ in range(2):
        came.add(read_chats(json.dumps([ROWS, CIRCLE]).encode()))
    assert came.told().startswith("2 chats came in. Not as in the file: left out: ")
    assert "is missing (2)" in came.told()


def test_halves_of_characters_come_in_as_what_can_be_written() -> None:
    text = json.dumps([{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "\udfff"}])
    read = read_chats(text.encode())
    for out in (to_json(read), to_markdown(read[0]), to_training_jsonl(read)):
        assert "\ufffd" in out
        out.encode()


def test_the_branch_that_is_shown_goes_out_as_a_document() -> None:
    assert "Seneca" in to_markdown(tree())
    assert "Where?" in to_markdown(tree())
    assert "When?" not in to_markdown(tree())
