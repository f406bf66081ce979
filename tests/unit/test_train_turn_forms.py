"""Chats in all the forms that they come in, switches of rows, and cures that can be pasted."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from core.errors import TrainError
from tests.unit.test_train_rows import HELLO, PICTURES, REPLY, TOOLS, USER, load
from train.qlora import setting
from train.recipe import changed, parse


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"type": "text", "text": "Hi"}, "Hi"),
        (["Hi", {"type": "text", "text": "there"}], "Hi\nthere"),
        ({"content_type": "text", "parts": ["Hi", "there"]}, "Hi\nthere"),
        ([{"type": "text", "text": {"value": "Hi", "annotations": []}}], "Hi"),
        ({"type": "cat", "name": "Tom"}, '{"type": "cat", "name": "Tom"}'),
        ({"file": "a.txt"}, '{"file": "a.txt"}'),
        (["Hi", 4], '["Hi", 4]'),
    ],
)
def test_content_is_read_as_parts_or_as_json(content: object, text: str, tmp_path: Path) -> None:
    [example] = load(tmp_path, {"messages": [USER, REPLY | {"content": content}]}).examples
    assert example.messages == [USER, REPLY | {"content": text}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "reasoning", "text": "Hm."},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "signature": "x"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"text": "Hm.", "thought": True},
    ],
)
def test_a_part_that_is_a_thought_stays_one(part: dict[str, Any], tmp_path: Path) -> None:
    reply = {"role": "assistant", "content": [part, {"text": "Hi"}]}
    [example] = load(tmp_path, {"messages": [USER, reply]}).examples
    assert example.messages == [USER, REPLY | {"reasoning_content": "Hm."}]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        *((kind, PICTURES) for kind in ("image_url", "input_image", "input_audio", "video_url")),
        *((kind, TOOLS) for kind in ("tool_use", "tool_result", "function_call")),
        *((kind, f"a part of the type {kind}; only text is trained") for kind in ("file", "refusal", "new")),
    ],
)
def test_another_part_is_called_what_it_is(kind: str, reason: str, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": kind, kind: "x"}]
    loaded = load(tmp_path, {"messages": HELLO}, {"messages": [USER, REPLY | {"content": parts}]})
    assert loaded.left_out == {reason: 1}
    assert kind in loaded.first[reason]


@pytest.mark.parametrize(
    "row",
    [
        {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}, {"role": "model", "parts": ["Hi"]}]},
        {"messages": [{"user": "Hello"}, {"assistant": "Hi"}]},
        {"conversations": [{"Human": "Hello", "assistant": "Hi"}]},
        {"conversation": [{"output": "Hi", "input": "Hello"}]},
        {"conversation": [["Hello", "Hi"]]},
        {"messages": [["user", "Hello"], ["assistant", "Hi"]]},
        {"id": "7", "data": ["Hello", "Hi"]},
        {"chat": "\n\nHuman: Hello\n\nAssistant: Hi"},
        {"messages": "### Human: Hello### Assistant: Hi"},
        {"messages": {"messages": HELLO}},
        {"dialog": [{"speaker": "user", "text": "Hello"}, {"speaker": "bot", "text": "Hi"}]},
        {"user": "Hello", "assistant": "Hi"},
        {"prompt": [{"type": "text", "text": "Hello"}], "completion": "Hi"},
        {"Frage": "Hello", "Antwort": "Hi"},
    ],
)
def test_turns_are_read_whatever_they_come_in(row: dict[str, Any], tmp_path: Path) -> None:
    [example] = load(tmp_path, row).examples
    assert example.messages == HELLO


def test_a_pair_keeps_what_is_said_of_it(tmp_path: Path) -> None:
    pairs = [{"system": "S", "input": "a", "output": "b", "train": False}, {"input": "c", "output": "d"}]
    [example] = load(tmp_path, {"conversation": pairs}).examples
    assert [turn["content"] for turn in example.messages] == ["S", "a", "b", "c", "d"]
    assert example.untrained == {2}


def test_a_turn_without_a_clear_role_is_shown(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"messages": HELLO}, {"messages": [{"user": "Ann", "content": "Hello"}, REPLY]})
    reason = "a role other than system, user and assistant"
    assert loaded.first[reason] == "row 2: {'user': 'Ann', 'content': 'Hello'}"


def test_the_weights_of_a_column_are_judged_one_by_one(tmp_path: Path) -> None:
    cells = [1, 0, "0.0", None, 0.25, 1.0]
    rows = [{"prompt": str(i), "completion": "x", "weight": cell} for i, cell in enumerate(cells)]
    loaded = load(tmp_path, *rows)
    assert [example.row for example in loaded.examples] == [1, 4, 6]
    off, share = loaded.left_out
    assert (off, loaded.left_out[off]) == ("its row says that it isn't to be trained", 2)
    assert share.startswith("column 'weight': a weight other than 0 and 1; to train all rows alike: --set ")
    assert loaded.first[share] == "row 5: 0.25"
    assert off in loaded.on_purpose
    assert share not in loaded.on_purpose
    alike = load(tmp_path, *rows, columns={"unused": "weight"})
    assert len(alike.examples) == len(rows)


@pytest.mark.parametrize(
    ("column", "on", "off"),
    [
        *((name, 1, 0) for name in ("loss_mask", "sample_weight", "do_train", "is_train", "use")),
        *((name, False, True) for name in ("skip", "exclude")),
        *((name, "true", "false") for name in ("chosen", "label", "is_correct")),
        ("rejected", False, True),
    ],
)
def test_a_switch_of_a_row_is_honoured(column: str, on: object, off: object, tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "completion": "x", column: [on, off][i % 2]} for i in range(4)]
    loaded = load(tmp_path, *rows)
    assert [example.row for example in loaded.examples] == [1, 3]
    assert not loaded.not_used


@pytest.mark.parametrize(
    ("column", "value"),
    [("quality", 0.3), ("score", 0), ("label", 2), ("use", "cooking"), ("loss", 2.5), ("chosen", "B")],
)
def test_a_column_that_is_no_switch_is_named_with_its_value(
    column: str, value: object, tmp_path: Path
) -> None:
    loaded = load(tmp_path, {"prompt": "a", "completion": "b", column: value})
    assert loaded.not_used == {f"column {column!r}": 1}
    assert loaded.first[f"column {column!r}"] == f"row 1: {value!r}"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"problem": "a", "solution": "c", "answer": "b"},
        {"text": "a", "class": "b"},
        {"the question": "a", "yes": "b"},
        {"prompt": "a", "completion": "b", "messages": [{"user": "a"}, {"bot": "b"}]},
    ],
)
def test_columns_are_said_by_options_that_can_be_pasted(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainError) as caught:
        load(tmp_path, row)
    words = shlex.split(str(caught.value)[str(caught.value).index("--set") :])
    given = [option for sign, option in pairwise(words) if sign == "--set" and "text=text" not in option]
    recipe = parse({"model": {"base_model": "x", "license": "mit"}, "data": {"path": "x"}}, "test")
    recipe = changed(recipe, dict(map(setting, given)), "--set")
    [example] = load(tmp_path, row, columns=recipe.data.columns).examples
    assert [turn["content"] for turn in example.messages] == ["a", "b"]


def test_a_chat_that_is_written_out_in_a_text_is_told_of(tmp_path: Path) -> None:
    row = {"text": "### Human: Hello### Assistant: Hi"}
    loaded = load(tmp_path, row, {"text": "The Human: a book."})
    [(said, count)] = loaded.noticed.items()
    assert count == 1
    assert "as chats: --set data.columns.messages=text" in said
    [example] = load(tmp_path, row, columns={"messages": "text"}).examples
    assert example.messages == HELLO


@pytest.mark.parametrize(
    "text",
    [
        "Q: Hello\nA: Hi",
        "Question: Hello\n\nAnswer: Hi",
        "User: Hello\nAssistant: Hi",
        "### Instruction:\nHello\n\n### Response:\nHi",
    ],
)
def test_headings_of_other_kinds_are_told_of_too(text: str, tmp_path: Path) -> None:
    [said] = load(tmp_path, {"text": text}).noticed
    assert "as chats: --set data.columns.messages=text" in said
    assert load(tmp_path, {"text": text}, columns={"messages": "text"}).examples[0].messages == HELLO


@pytest.mark.parametrize(
    ("prompt", "completion", "turns"),
    [
        ("Human: Hello", "Assistant: Hi", ["Hello", "Hi"]),
        ("Human: Hello\n\nAssistant:", " Hi", ["Hello", "Hi"]),
        ("### Instruction:\nHello\n### Input:\nyou\n### Response:", "Hi", ["Hello\n\nyou", "Hi"]),
        ("Q: Hello\nA: Hi\nQ: And you?\nA:", "So so", ["Hello", "Hi", "And you?", "So so"]),
        ("Q: Hello", "Hi", ["Q: Hello", "Hi"]),
        ("Hello", "A: Hi", ["Hello", "A: Hi"]),
        ("Human: Hello", "Well.\nAssistant: Hi", ["Human: Hello", "Well.\nAssistant: Hi"]),
        ("Q: Which?", "A: one\nA: two", ["Q: Which?", "A: one\nA: two"]),
    ],
)
def test_headings_in_a_pair_say_whose_turn_it_is(
    prompt: str, completion: str, turns: list[str], tmp_path: Path
) -> None:
    for asked, replied in (("prompt", "completion"), ("instruction", "output")):
        loaded = load(tmp_path, {asked: prompt, replied: completion})
        [example] = loaded.examples
        assert [turn["content"] for turn in example.messages] == turns
        assert example.pair is None or turns == [prompt, completion]
        assert any("headings" in said for said in loaded.changed) == (turns != [prompt, completion])


def test_characters_of_html_are_told_of_and_read_if_asked(tmp_path: Path) -> None:
    row = {"prompt": "Say &amp;quot;x&amp;quot;", "completion": "It&#39;s /a?b=1&copy=2 &such; A&B"}
    loaded = load(tmp_path, row, {"prompt": "a & b", "completion": "p = &sum; &such;"})
    [(said, count)] = loaded.noticed.items()
    assert (count, loaded.first[said]) == (1, "row 1: &amp;")
    options = shlex.split(said[said.index("--set") :])
    assert setting(options[1]) == ("data.unescape_html", True)
    [example] = load(tmp_path, row, unescape_html=True).examples
    assert [turn["content"] for turn in example.messages] == ['Say "x"', "It's /a?b=1&copy=2 &such; A&B"]
