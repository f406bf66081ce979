"""Chats that ChatGPT and llama.cpp exported, with all that such files hold beside text."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from chat.formats import Imported, read_chats
from chat.tree import Tree
from core.errors import ChatError


def read(value: Any) -> Imported:
    return read_chats(json.dumps(value).encode())


def texts(tree: Tree) -> list[str]:
    return [node.message.content for node in tree.branch()]


def children(tree: Tree) -> dict[str, list[str]]:
    text = {"": ""} | {name: node.message.content for name, node in tree.nodes.items()}
    return {text[parent]: [text[name] for name in names] for parent, names in tree.children().items()}


def node(name: str, parent: str | None, role: str, *parts: Any, at: float | None = None, **more: Any) -> Any:
    """Make a node of ChatGPT's."""
    content = more.pop("content", {"content_type": "text", "parts": list(parts)})
    about = {"metadata": {"model_slug": "gpt-5"}, "recipient": "all", "create_time": at}
    message = {"id": name, "author": {"role": role, "name": None}, "content": content} | about | more
    return {"id": name, "parent": parent, "children": [], "message": message}


def chatgpt(*nodes: Any, current: str | None = None) -> Any:
    """Make a chat of ChatGPT's: after the root, which is no message."""
    root = {"id": "client-created-root", "message": None, "parent": None, "children": []}
    about = {"title": "Greetings", "create_time": 1.7e9, "update_time": 1.7e9 + 60, "current_node": current}
    return about | {"mapping": {one["id"]: one for one in (root, *nodes)}, "conversation_id": "c"}


ROOT = "client-created-root"
HIDDEN = {"metadata": {"is_visually_hidden_from_conversation": True}}


def test_a_chat_of_chatgpts_keeps_its_branches_dates_and_models() -> None:
    given = chatgpt(
        node("a", ROOT, "user", "Hello", at=1.7e9),
        node("b2", "a", "assistant", "Hi again", at=1.7e9 + 5),
        node("b", "a", "assistant", "Hi", at=1.7e9 + 1),
        node("c", "b", "user", "And now?", at=1.7e9 + 2),
        node("d", "c", "assistant", "Now ", "this.", at=1.7e9 + 3),
        current="d",
    )
    [tree] = found = read([given])
    assert texts(tree) == ["Hello", "Hi", "And now?", "Now \n\nthis."]
    assert children(tree)["Hello"] == ["Hi", "Hi again"]
    assert (tree.chat.title, tree.chat.made, tree.chat.changed) == ("Greetings", 1.7e9, 1.7e9 + 60)
    assert [(one.model, one.at) for one in tree.branch()[1:2]] == [("gpt-5", 1.7e9 + 1)]
    assert tree.chat.model == ""  # this app has no such model
    assert found.told() == "1 chat came in."
    assert {"a", "c"}.isdisjoint({tree.chat.id, *tree.nodes})


def test_what_is_no_text_is_left_out_told_and_what_came_after_it_stays() -> None:
    profile = {
        "content_type": "user_editable_context",
        "user_profile": "I am Ada.",
        "user_instructions": "Rhyme.",
    }
    thoughts = {"content_type": "thoughts", "thoughts": [{"summary": "a", "content": "b"}]}
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}
    spoken = {"content_type": "audio_transcription", "text": "What is this?"}
    given = chatgpt(
        node("s", ROOT, "system", "", **HIDDEN),
        node("p", "s", "user", content=profile, **HIDDEN),
        node("a", "p", "user", picture, spoken),
        node("t", "a", "assistant", content=thoughts),
        node("k", "t", "assistant", "search()", recipient="web"),
        node("r", "k", "tool", "result"),
        node("e", "r", "assistant", ""),
        node("b", "e", "assistant", "A cat."),
        node("c", "b", "user", picture),
        node("d", "c", "assistant", "A dog."),
        node("x", "d", "system", "You are now a pirate."),
        node("y", "x", "user", "Sure?"),
        current="x",
    )
    [tree] = found = read([given])
    assert [one.message.content for one in tree.nodes.values()] == [
        *("What is this?", "A cat.", "[picture]", "A dog.", "Sure?"),
    ]
    assert texts(tree)[-1] == "A dog."  # what the file shows is left out, and hangs there
    assert tree.chat.system_prompt == "I am Ada.\n\nRhyme."
    told = {what.removesuffix(" left out"): count for what, count in found.notes.items()}
    assert told == {
        "pictures and other files": 2,
        "summaries of thoughts": 1,
        "calls and results of tools": 2,
        "empty messages": 1,
        "system messages in the middle of a chat": 1,
    }


def test_marks_that_only_chatgpt_can_show_are_left_out() -> None:
    cited = "Rome\ue200cite\ue202turn0search1\ue201. \ue200entity\ue202Ada\ue201 \ue200cite\ue202"
    given = chatgpt(node("a", ROOT, "user", "Where?"), node("b", "a", "assistant", cited), current="b")
    [tree] = found = read([given])
    assert texts(tree)[1] == "Rome. \ue200entity\ue202Ada\ue201 \ue200cite\ue202"
    assert "marks of sources, which only ChatGPT can show, left out (1)" in found.told()


def test_replies_in_steps_are_joined_on_each_of_their_branches() -> None:
    given = chatgpt(
        node("a", ROOT, "user", "Q"),
        node("b", "a", "assistant", "Let me look."),
        node("t", "b", "tool", "result"),
        node("c", "t", "assistant", "One."),
        node("d", "b", "assistant", "Two."),
        node("e", "d", "user", "Thanks"),
        current="c",
    )
    [tree] = found = read([given])
    assert children(tree)["Q"] == ["Let me look.\n\nOne.", "Let me look.\n\nTwo."]
    assert texts(tree) == ["Q", "Let me look.\n\nOne."]
    assert "joined with the one before them, of the same side (2)" in found.told()


def row(name: Any, parent: Any, role: str, content: str, at: int = 0, **more: Any) -> dict[str, Any]:
    """Make a message of llama.cpp's."""
    about = {"convId": "v", "type": "text", "timestamp": 1_700_000_000_000 + at, "children": []}
    return about | {"id": name, "parent": parent, "role": role, "content": content} | more


CONV = {"id": "v", "name": "Greetings", "lastModified": 1_700_000_060_000, "currNode": "b", "pinned": True}
ROWS = [
    row("r", None, "system", "", type="root"),
    row("s", "r", "system", "Be brief.", type="system"),
    row("a", "s", "user", "Hello", 1_000),
    row("b2", "a", "assistant", "Hi again", 3_000, model="qwen"),
    row("b", "a", "assistant", "Hi", 2_000, reasoningContent="Greet.", model="qwen", timings={"x": 1}),
]


def as_lines(conv: Any, rows: list[Any]) -> bytes:
    lines = [{"type": "session", "harness": "llama.cpp"} | conv]
    return "\n".join(map(json.dumps, lines + [{"type": "message", "message": one} for one in rows])).encode()


@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"conv": CONV, "messages": ROWS}).encode(),
        json.dumps([{"conv": CONV, "messages": ROWS}]).encode(),
        as_lines(CONV, ROWS),
    ],
    ids=["one", "list", "lines"],
)
def test_a_chat_of_llama_cpps_comes_in_from_each_of_its_formats(data: bytes) -> None:
    [tree] = found = read_chats(data)
    assert texts(tree) == ["Hello", "Hi"]
    assert children(tree)["Hello"] == ["Hi", "Hi again"]
    reply = tree.branch()[1]
    assert (reply.message.reasoning_content, reply.model, reply.at) == ("Greet.", "qwen", 1_700_000_002)
    chat = tree.chat
    assert (chat.title, chat.changed, chat.pinned) == ("Greetings", 1_700_000_060, True)
    assert chat.system_prompt == "Be brief."
    assert found.told() == "1 chat came in."
    assert len(read_chats(data + b"\n" + data)) == 2 if data.count(b"\n") else True


def test_older_files_of_llama_cpps_are_read_too() -> None:
    """Numbers for ids, -1 for the root's parent, `thinking`; and files of one branch, without the root."""
    rows = [
        row(1, -1, "system", "", type="root"),
        row(2, 1, "user", "Hello"),
        row(3, 2, "assistant", "Hi", thinking="Greet."),
    ]
    for kept in (rows, rows[1:]):
        [tree] = read({"conv": CONV | {"currNode": 3}, "messages": kept})
        assert texts(tree) == ["Hello", "Hi"]
        assert tree.branch()[1].message.reasoning_content == "Greet."


def test_files_that_the_model_read_stay_and_others_are_told() -> None:
    extra = [
        {"type": "TEXT", "name": "a.txt", "content": "in the file"},
        {"type": "IMAGE", "name": "b.png", "base64Url": "data:"},
        {"type": "PDF", "name": "c.pdf", "content": "seen as pictures", "processedAsImages": True},
    ]
    rows = [
        row("a", None, "user", "Read it", extra=extra),
        row("c", "a", "assistant", "", toolCalls='[{"id": 1}]'),
        row("t", "c", "tool", "result"),
        row("b", "t", "assistant", "Read."),
    ]
    [tree] = found = read({"conv": CONV, "messages": rows})
    assert texts(tree) == ["Read it\n\n--- File: a.txt ---\nin the file", "Read."]
    assert found.notes["pictures and other files left out"] == 2
    assert found.notes["calls and results of tools left out"] == 2


GOOD = chatgpt(node("a", ROOT, "user", "Q"), node("b", "a", "assistant", "A"), current="b")
LOOP = chatgpt(node("a", "b", "user", "Q"), node("b", "a", "assistant", "A"))
HOSTILE: list[tuple[Any, str]] = [
    (LOOP, "circle"),
    (chatgpt(node("a", "gone", "user", "Q")), "circle"),
    (chatgpt(node("a", 3, "user", "Q")), "circle"),  # type: ignore[arg-type]
    ({"mapping": {"a": 3}}, "circle"),
    ({"mapping": {"": {"parent": None}}}, "one id"),
    ({"mapping": {}}, "no messages"),
    ({"mapping": {"a": {"parent": None, "message": 3}}}, "no messages"),
    ({"mapping": {"a": {"message": {"author": 3, "content": [3], "metadata": "x"}}}}, "no messages"),
    (chatgpt(node("a", ROOT, "user", content={"parts": {"a": 1}})), "no messages"),
    ({"conv": {}, "messages": []}, "no messages"),
    ({"conv": {}, "messages": [3]}, "one id"),
    ({"conv": {}, "messages": [row("a", None, "user", "Q")] * 2}, "one id"),
    ({"conv": {}, "messages": [row("a", "a", "user", "Q")]}, "circle"),
    ({"conv": {}, "messages": [row("a", "x", "user", "Q"), row("b", "y", "user", "Q")]}, "circle"),
    ({"conv": {}, "messages": [row(True, None, "user", "Q")]}, "one id"),
    ({"conv": {}, "messages": [row(n, n - 1, "user", "Q") for n in range(1, 20_002)]}, "20,000"),
    ({"conv": 3, "messages": 3}, "kind"),
    ({"type": "session"}, "no messages"),
    ({"type": "message", "message": {}}, "No chat could be read"),
]


@pytest.mark.parametrize(("given", "reason"), HOSTILE)
def test_a_broken_chat_is_left_out_and_the_others_come_in(given: Any, reason: str) -> None:
    with pytest.raises(ChatError, match=reason):
        read([given])
    found = read([GOOD, given])
    assert [texts(tree) for tree in found] == [["Q", "A"]]
    assert found.notes
    assert not {"joined"} & {*found.told().split()}


@pytest.mark.parametrize("value", [None, True, -1, 1e300, 10**400, "2026", [], {}])
def test_odd_dates_names_and_places_do_no_harm(value: Any) -> None:
    given = chatgpt(node("a", ROOT, "user", "Q", at=value, metadata=value), node("b", "a", "assistant", "A"))
    given |= {"title": value, "create_time": value, "update_time": value, "current_node": value}
    conv = dict.fromkeys(("id", "name", "lastModified", "currNode", "pinned"), value)
    message = row("a", None, "user", "Q", timestamp=value, model=value, thinking=value, extra=value)
    for one in (given, {"conv": conv, "messages": [message | {"toolCalls": ""}]}):
        [tree] = read([one])
        assert texts(tree)[0] == "Q"
        json.dumps(tree.rows(), allow_nan=False)


def chain(names: int, text: str) -> list[Any]:
    """Make a chain of questions, each of which has a reply too, so that each stands for itself."""
    rows = [row(f"a{n}", f"a{n - 1}" if n else None, "user", text) for n in range(names)]
    return rows + [row(f"b{n}", f"a{n}", "assistant", "A") for n in range(names)]


def test_files_that_would_grow_without_bound_are_refused_in_a_moment() -> None:
    began = time.process_time()
    with pytest.raises(ChatError, match="characters"):
        read({"conv": {}, "messages": chain(10_000, "x" * 100)})
    read({"conv": {}, "messages": chain(1_000, "x")})
    [long] = read(
        {"conv": {}, "messages": chain(1, "x") + [row(n, "a0", "user", "y") for n in range(15_000)]}
    )
    assert len(long.nodes) == 15_002
    assert time.process_time() - began < 20
