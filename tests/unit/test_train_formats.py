"""Data sets whose columns give their format away, and rows that can't be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import TrainError
from train.data import load_examples, lost
from train.examples import Example, Loaded
from train.sections import Data
from train.turns import TOOLS_USED

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
SYSTEM = {"role": "system", "content": "Be kind."}
SHARED = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi there"}]


def load(folder: Path, *rows: Any, **options: Any) -> Loaded:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_examples(Data(path=str(path), **options), seed=0)
    assert lost(loaded) == 0
    return loaded


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("messages", {"messages": HELLO}),
        ("sharegpt", {"conversations": SHARED}),
        ("sharegpt", {"conversations": HELLO}),
        ("alpaca", {"instruction": "Hello", "input": "", "output": "Hi there"}),
        ("alpaca", {"instruction": "Hello", "output": "Hi there", "text": "its rendering"}),
        ("prompt-completion", {"prompt": "Hello", "completion": "Hi there"}),
        ("prompt-completion", {"prompt": HELLO[:1], "completion": HELLO[1:]}),
    ],
)
def test_columns_give_the_format_away(tmp_path: Path, layout: str, row: dict[str, Any]) -> None:
    loaded = load(tmp_path, row)
    assert loaded.layout == layout
    assert loaded.examples == [Example(HELLO, "", "Hello")]


def test_an_alpaca_input_follows_the_instruction(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"instruction": "Sort this.", "input": "3 1 2", "output": "1 2 3"})
    assert loaded.examples[0].messages[0]["content"] == "Sort this.\n\n3 1 2"


def test_texts_are_trained_as_they_are(tmp_path: Path) -> None:
    assert load(tmp_path, {"text": " a\r\nb "}).examples == [Example([], " a\nb ", " a\nb ", rendered=True)]
    loaded = load(tmp_path, {"prompt": "1 + 1 =", "completion": " 2"}, format="text")
    assert loaded.examples == [Example([], "1 + 1 = 2", "1 + 1 = 2", rendered=True)]


def test_a_system_turn_stays_unless_it_is_blank(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    loaded = load(
        tmp_path,
        {"messages": [system, *HELLO]},
        {"messages": [system | {"content": " "}, *HELLO]},
    )
    assert [example.messages for example in loaded.examples] == [[system, *HELLO], HELLO]


def test_system_messages_in_the_middle_are_kept_and_around_a_greeting_joined(tmp_path: Path) -> None:
    middle = [*HELLO, SYSTEM, *HELLO]
    greeted = [SYSTEM, HELLO[1], SYSTEM | {"content": "Be brief."}, *HELLO]
    loaded = load(tmp_path, {"messages": middle}, {"messages": greeted})
    joined = [SYSTEM | {"content": "Be kind.\n\nBe brief."}, *HELLO]
    assert [example.messages for example in loaded.examples] == [middle, joined]
    assert loaded.left_out == {}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (None, "no turns"),
        ([], "no turns"),
        ("Hello", "no turns"),
        (["Hello"], "a turn that is no object"),
        ([*HELLO, {"role": "tool", "content": "4"}], TOOLS_USED),
        ([{"role": "narrator", "content": "4"}, *HELLO], "a role other than system, user and assistant"),
        ([{"content": "Hello"}], "a role other than system, user and assistant"),
        ([HELLO[0], {"role": "assistant", "content": None}], "an empty turn"),
        ([HELLO[0], {"role": "assistant", "content": [{"type": "text"}]}], "a turn that is no text"),
        ([HELLO[0], {"role": "assistant", "content": " \n"}], "an empty turn"),
        (HELLO[:1], "no reply of the assistant"),
        (HELLO[1:], "no turn of the user"),
        ([SYSTEM, HELLO[1], SYSTEM, HELLO[1]], "no turn of the user"),
        (HELLO, "the same as an earlier row"),
    ],
)
def test_a_row_that_is_no_chat_is_counted_by_its_reason(tmp_path: Path, turns: Any, reason: str) -> None:
    loaded = load(tmp_path, {"messages": HELLO}, {"messages": turns})
    assert len(loaded.examples) == 1
    assert loaded.left_out == {reason: 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "x", "output": ""}, "no output"),
        ({"instruction": None, "output": "x"}, "no instruction"),
    ],
)
def test_half_an_alpaca_row_is_counted(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    loaded = load(tmp_path, {"instruction": "a", "output": "b"}, row)
    assert loaded.left_out == {reason: 1}


def test_what_comes_after_the_last_reply_is_cut_off(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"messages": [*HELLO, HELLO[0], HELLO[0]]})
    assert loaded.examples[0].messages == HELLO
    assert loaded.changed == {"turns after the last reply cut off": 1}


def test_several_formats_or_none_are_refused_with_the_columns(tmp_path: Path) -> None:
    with pytest.raises(
        TrainError, match=r"\(prompt, completion, messages\) could be messages or prompt-comp"
    ):
        load(tmp_path, {"prompt": "a", "completion": "b", "messages": HELLO})
    with pytest.raises(TrainError, match=r"\(question, reply\) are of no known format"):
        load(tmp_path, {"question": "a", "reply": "b"})


def test_format_text_needs_a_text(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"format: text has no meaning for .* whose rows are messages"):
        load(tmp_path, {"messages": HELLO}, format="text")


def test_a_column_can_group_the_rows(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {"prompt": "a", "completion": "b", "book": "Emma"},
        {"prompt": "c", "completion": "d", "book": None},
        group_by="book",
    )
    assert [example.group for example in loaded.examples] == ["Emma", "c"]
    with pytest.raises(TrainError, match="no column 'author'; it has prompt, completion"):
        load(tmp_path, {"prompt": "a", "completion": "b"}, group_by="author")


def test_code_keeps_its_indentation_and_broken_characters_are_replaced(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"prompt": "half \ud83d", "completion": "\n    return 1\n"})
    assert [turn["content"] for turn in loaded.examples[0].messages] == ["half ?", "    return 1"]
