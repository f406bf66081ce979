"""A chat with branches: what is done with it, and rows that come back from where others can write."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from pydantic import ValidationError

from chat import branching
from chat.conversation import Message
from chat.tree import MAX_MESSAGES, TITLE_CHARACTERS, Chat, Compared, Tree, new_id, title_of
from core.errors import ChatError


def said(text: str, role: str = "user") -> Message:
    return Message.model_validate({"role": role, "content": text})


def replied(text: str) -> Message:
    return said(text, "assistant")


def tree() -> Tree:
    """Make a chat of two questions, of which the first has two replies, and the second an edited form."""
    made = Tree(Chat(title="T", model="m", system_prompt="Be kind."))
    first = made.add(said("a"))
    made.add(replied("b"), model="m", vote=-1)
    again = made.add(replied("B"), first.id, model="n", adapters={"x": 0.5}, vote=1)
    made.add(said("c"))
    made.add(replied("d"))
    made.add(said("C"), again.id)
    made.add(replied("D"), edited=True)
    return made


def texts(made: Tree) -> list[str]:
    return [node.message.content for node in made.branch()]


def test_what_is_tried_again_or_edited_stands_beside_what_was_there() -> None:
    made = tree()
    assert texts(made) == ["a", "B", "C", "D"]
    children = {
        made.nodes[parent].message.content if parent else "": [made.nodes[c].message.content for c in ids]
        for parent, ids in made.children().items()
    }
    assert children == {"": ["a"], "a": ["b", "B"], "B": ["c", "C"], "c": ["d"], "C": ["D"]}


def test_a_branch_is_shown_as_far_as_its_newest_reply() -> None:
    made = tree()
    by_text = {node.message.content: node.id for node in made.nodes.values()}
    made.chat.left_out, made.chat.tokens = 1, 90
    for name, shown in (("c", ["a", "B", "c", "d"]), ("b", ["a", "b"]), ("a", ["a", "B", "C", "D"])):
        branching.switch(made, made.newest(by_text[name]))
        assert texts(made) == shown
        assert (made.chat.left_out, made.chat.tokens) == (0, 0)


def test_a_turn_has_the_branch_and_the_settings_and_writes_into_the_tree() -> None:
    made = tree()
    turn = made.conversation()
    assert turn.settings() == made.chat.settings()
    assert (turn.model, turn.system_prompt) == ("m", "Be kind.")
    assert [message.content for message in turn.messages] == ["a", "B", "C", "D"]
    turn.messages[-1].content = "more"
    assert texts(made)[-1] == "more"


def test_two_replies_wait_for_a_vote_until_the_chat_goes_on_or_one_is_missing() -> None:
    made = tree()
    assert Tree.read({"title": "of an older version"}, []).pair() == []
    left, right = (next(n for n in made.nodes.values() if n.message.content == text) for text in "bB")
    question, leaf = made.nodes[left.parent], made.chat.leaf
    made.chat.compared = Compared(nodes=(left.id, right.id), blind=True)
    assert made.pair() == []  # another branch is shown
    made.chat.leaf = left.id
    again = Tree.read(made.rows()["chat"], made.rows()["messages"])
    assert [node.id for node in again.pair()] == [left.id, right.id]
    for nodes in ((left.id, "gone"), (left.id, left.id), (left.id, question.id), (left.id, leaf)):
        made.chat.compared = Compared(nodes=nodes)
        assert made.pair() == []


def test_rows_come_back_as_they_were_in_whatever_order() -> None:
    made = tree()
    rows = json.loads(json.dumps(made.rows(), allow_nan=False))
    random.Random(0).shuffle(rows["messages"])
    again = Tree.read(rows["chat"], rows["messages"])
    assert again.rows() == made.rows()
    assert list(again.nodes) == list(made.nodes)


def test_a_reply_comes_after_its_question_whatever_the_clock_said() -> None:
    made = tree()
    for back, node in enumerate(made.nodes.values()):
        node.at = 1_000.0 - back
    again = Tree.read(made.rows()["chat"], made.rows()["messages"])
    seen = {""}
    for node in again.nodes.values():
        assert node.parent in seen
        seen.add(node.id)


def test_a_branch_that_is_gone_gives_way_to_the_newest_message() -> None:
    rows = tree().rows()
    again = Tree.read(rows["chat"] | {"leaf": "gone"}, rows["messages"])
    assert texts(again) == ["a", "B", "C", "D"]
    assert Tree.read({"leaf": "gone"}, []).chat.leaf == ""


def test_nothing_is_added_where_it_can_not_stand() -> None:
    made = tree()
    before = made.rows()
    for parent, message in ((None, replied("x")), ("", replied("x")), ("gone", said("x"))):
        with pytest.raises(ChatError):
            made.add(message, parent)
    with pytest.raises(ChatError, match="already"):
        made.add(said("x"), id=made.chat.leaf)
    with pytest.raises(ChatError, match="Reload"):
        branching.switch(made, made.newest("gone"))
    for hostile in (None, 3, ["x"], {}, "gone"):
        with pytest.raises(ChatError, match="Reload"):
            made.node(hostile)
    with pytest.raises(ChatError, match="Reload"):
        made.branch("gone")
    assert made.rows() == before


NODE: dict[str, Any] = {"id": "a", "parent": "", "at": 1.0, "message": {"role": "user", "content": "x"}}
REPLY: dict[str, Any] = NODE | {"id": "b", "parent": "a", "message": {"role": "assistant", "content": "y"}}


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth):
        made = {"x": made}
    return made


@pytest.mark.parametrize(
    ("chat", "rows", "reason"),
    [
        ({}, None, "list of messages"),
        ({}, {}, "list of messages"),
        ({}, [NODE] * (MAX_MESSAGES + 1), "at most"),
        (None, [], "no chat of ours"),
        ([], [], "no chat of ours"),
        ({"unknown": 1}, [], "unknown"),
        ({"title": "x" * 201}, [], "title"),
        ({"id": "../x"}, [], "id"),
        ({"id": "x\n"}, [], "id"),
        ({"changed": float("nan")}, [], "changed"),
        ({"changed": 1e300}, [], "changed"),
        ({"made": -1}, [], "made"),
        ({"tokens": 10**400}, [], "tokens"),
        ({"adapters": {"x": float("inf")}}, [], "adapters"),
        ({"adapters": dict.fromkeys(map(str, range(101)), 1.0)}, [], "adapters"),
        ({"model": "x" * 501}, [], "model"),
        ({"compared": {"nodes": ["a"]}}, [], "compared"),
        ({"json_schema": nested(101)}, [], "too deep"),
        ({"json_schema": {"x": "y" * 70_000}}, [], "bytes"),
        ({"json_schema": {"x": "\ud800"}}, [], "half a character"),
        ({"json_schema": {"x": float("nan")}}, [], "json_schema"),
        ({}, [3], "no chat of ours"),
        ({}, [NODE | {"at": float("inf")}], "at"),
        ({}, [NODE | {"vote": 2}], "vote"),
        ({}, [NODE | {"x" * 10**6: 2}], "x"),
        ({}, [NODE | {"message": {"role": "tool", "content": "x"}}], "role"),
        ({}, [NODE | {"message": {"role": "user", "content": None}}], "content"),
        ({}, [NODE, NODE], "one id"),
        ({}, [NODE, REPLY | {"parent": "c"}], "beginning is missing"),
        ({}, [NODE | {"parent": "b"}, REPLY], "beginning is missing"),
        ({}, [NODE, REPLY | {"parent": "b"}], "beginning is missing"),
        ({}, [NODE, REPLY | {"message": NODE["message"]}], "take turns"),
        ({}, [NODE | {"message": REPLY["message"]}], "take turns"),
    ],
)
def test_rows_that_are_no_chat_are_refused_in_a_sentence(chat: Any, rows: Any, reason: str) -> None:
    with pytest.raises(ChatError, match=reason) as refused:
        Tree.read(chat, rows)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


def test_halves_of_characters_become_marks_that_can_be_written() -> None:
    half = {"title": "\ud800", "model": "\udfff", "system_prompt": "\ud800", "adapters": {"\ud800": 1.0}}
    rows = [NODE | {"model": "\ud800", "message": {"role": "user", "content": "\ud800"}}]
    json.dumps(Tree.read(half, rows).rows(), ensure_ascii=False).encode()


def test_a_setting_that_can_not_be_kept_is_refused_when_it_is_made() -> None:
    with pytest.raises(ValidationError):
        Chat().title = "x" * 201


def test_twenty_thousand_messages_are_read_and_shown_in_a_moment() -> None:
    """One chain, the worst shape: what is quadratic takes minutes."""
    roles = ("user", "assistant")
    rows = [
        NODE
        | {
            "id": f"m{i}",
            "parent": f"m{i - 1}" if i else "",
            "message": {"role": roles[i % 2], "content": ""},
        }
        for i in range(MAX_MESSAGES)
    ]
    began = time.process_time()
    made = Tree.read({}, rows[::-1])
    branching.switch(made, made.newest("m0"))
    assert len(made.branch()) == len(made.conversation().messages) == MAX_MESSAGES
    made.rows()
    assert time.process_time() - began < 10
    with pytest.raises(ChatError, match="Begin a new one"):
        made.add(said("x"))


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("Who wrote it?", "Who wrote it?"),
        ("  Who\n\nwrote\tit? ", "Who wrote it?"),
        ("", ""),
        ("word " * 30, "word word word word word word word word word word word…"),
        ("字" * 100, "字" * (TITLE_CHARACTERS - 1) + "…"),
        ("https://example.com/" + "x" * 100, "https://example.com/" + "x" * 39 + "…"),
    ],
)
def test_a_title_is_the_beginning_of_the_first_question(question: str, title: str) -> None:
    assert title_of(question) == title
    assert len(title) <= TITLE_CHARACTERS


def test_ids_are_new_and_can_stand_in_an_address() -> None:
    assert len({new_id() for _ in range(1_000)}) == 1_000
    assert Chat(id=new_id()).id
