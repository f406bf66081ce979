"""Chats as ChatGPT and Claude export them, in every shape that a file of them has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.data import load_examples
from train.examples import Loaded
from train.sections import Data

CHAT = [("user", "Hello"), ("assistant", "Hi there"), ("user", "And now?"), ("assistant", "Now this.")]
WANTED = [{"role": role, "content": text} for role, text in CHAT]


def message(role: str, *parts: Any, **more: Any) -> dict[str, Any]:
    content = {"content_type": "text", "parts": list(parts)}
    about = {"weight": 1.0, "status": "finished_successfully", "recipient": "all", "metadata": {}}
    return {"author": {"role": role, "name": None, "metadata": {}}, "content": content} | about | more


def export(*messages: dict[str, Any] | None) -> dict[str, Any]:
    """A chat as chat.openai.com writes it, with an answer that was asked for again before the last one."""
    nodes: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None, "children": []}}
    parent = "root"
    for number, said in enumerate(messages):
        key = f"m{number}"
        nodes[key] = {"id": key, "message": said, "parent": parent, "children": []}
        nodes[parent]["children"].append(key)
        parent = key
    before = nodes[parent]["parent"]
    other = {"id": "again", "message": message("assistant", "Not this."), "parent": before, "children": []}
    nodes["again"] = other
    nodes[before]["children"].insert(0, "again")
    return {"title": "Greetings", "create_time": 1.7e9, "mapping": nodes, "current_node": parent}


def usual() -> dict[str, Any]:
    hidden = {"metadata": {"is_visually_hidden_from_conversation": True}}
    first = message("system", "", **hidden)
    thoughts = {"content": {"content_type": "thoughts", "thoughts": [{"summary": "a", "content": "b"}]}}
    recap = {"content": {"content_type": "reasoning_recap", "content": "Thought for 5 s"}}
    said = [message(role, text) for role, text in CHAT]
    middle = [message("assistant") | thoughts, message("assistant") | recap, message("system", "x", **hidden)]
    return export(first, *said[:1], None, *middle, *said[1:])


def load(path: Path, text: str) -> Loaded:
    path.write_text(text)
    return load_examples(Data(path=str(path)), seed=0)


@pytest.mark.parametrize(
    "written",
    [
        lambda row: json.dumps([row]),
        lambda row: json.dumps([row], indent=2),
        lambda row: json.dumps(row),
        lambda row: json.dumps(row, indent=2),
        lambda row: json.dumps(row) + "\n" + json.dumps(row | {"title": "Again"}),
    ],
    ids=["list", "indented list", "one", "one indented", "lines"],
)
def test_the_branch_on_screen_of_a_chatgpt_export_is_the_chat(
    written: Callable[[Any], str], tmp_path: Path
) -> None:
    loaded = load(tmp_path / "conversations.json", written(usual()))
    assert [example.messages for example in loaded.examples] == [WANTED]
    assert [*loaded.left_out] in ([], ["the same as an earlier row"])
    assert not loaded.changed
    assert not loaded.not_used


def test_what_the_user_told_chatgpt_about_all_chats_is_the_system_message(tmp_path: Path) -> None:
    told = {
        "content_type": "user_editable_context",
        "user_profile": "I am Ada.",
        "user_instructions": "Rhyme.",
    }
    hidden = {"metadata": {"is_visually_hidden_from_conversation": True}}
    row = export(message("user", **hidden) | {"content": told}, *(message(*turn) for turn in CHAT))
    loaded = load(tmp_path / "a.json", json.dumps([row]))
    system = {"role": "system", "content": "I am Ada.\n\nRhyme."}
    assert [example.messages for example in loaded.examples] == [[system, *WANTED]]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (
            export(message("user", {"content_type": "image_asset_pointer"}), message("assistant", "A cat")),
            "pic",
        ),
        (export(message("user", "Hi"), message("assistant", "sum()", recipient="python")), "tools are used"),
        (export(message("user", "Hi"), message("tool", "4"), message("assistant", "4")), "tools are used"),
        (usual() | {"current_node": "gone"}, "that isn't there"),
    ],
    ids=["picture", "call", "result", "broken"],
)
def test_what_is_no_chat_of_text_is_left_out_alone(broken: Any, reason: str, tmp_path: Path) -> None:
    loaded = load(tmp_path / "conversations.json", json.dumps([usual(), broken]))
    assert len(loaded.examples) == 1
    [left_out] = loaded.left_out
    assert reason in left_out
    assert loaded.first[left_out].startswith("row 2")


def test_a_circle_of_messages_ends(tmp_path: Path) -> None:
    row = usual()
    row["mapping"]["root"]["parent"] = row["current_node"]
    loaded = load(tmp_path / "conversations.json", json.dumps([usual(), row]))
    assert [reason for reason in loaded.left_out if "circle" in reason]


@pytest.mark.parametrize("alone", [True, False])
def test_an_export_of_claude_is_read(alone: bool, tmp_path: Path) -> None:
    senders = {"user": "human", "assistant": "assistant"}
    turns = [
        {"uuid": "x", "text": text, "content": [{"type": "text", "text": text}], "sender": senders[role]}
        | {"created_at": "2026-01-01", "attachments": [], "files": []}
        for role, text in CHAT
    ]
    row = {"uuid": "x", "name": "Greetings", "chat_messages": turns, "account": {"uuid": "y"}}
    loaded = load(tmp_path / "conversations.json", json.dumps(row if alone else [row]))
    assert [example.messages for example in loaded.examples] == [WANTED]
