"""What rows of all kinds mean: every cell by its type, every key honoured, or counted with a reason."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from core.errors import TrainError
from train.cells import cell_text, empty, missing
from train.data import load_examples, lost
from train.examples import Loaded
from train.sections import Data
from train.split import split_examples

USER, REPLY = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
HELLO = [USER, REPLY]
PICTURE = {"type": "image_url", "image_url": {"url": "x"}}
TOOLS = (
    "tools are used, and a chat here has none; to train them, render such rows with the model's own template "
    "beforehand (apply_chat_template) and give them as columns prompt and completion"
)
UNUSED = "--set data.columns.unused=tools (in a recipe, data.columns: {unused: tools})"
PICTURES = "a picture, sound or video; only text is trained"


def load(folder: Path, *rows: Any, **options: Any) -> Loaded:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_examples(Data(path=str(path), **options), seed=0)
    assert lost(loaded) == 0
    return loaded


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1, "b": [True, None, math.nan]}, '{"a": 1, "b": [true, null, null]}'),
        ([], "[]"),
        (["ü", 2.5], '["ü", 2.5]'),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (3.0, "3.0"),
        (Decimal("19.90"), "19.90"),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        ({"when": datetime.datetime(2024, 5, 1, 12)}, '{"when": "2024-05-01T12:00:00"}'),
        (b"bytes", "bytes"),
        ("None", "None"),
        ("text\r\n", "text\n"),
        *((nothing, "") for nothing in (None, math.nan, Decimal("nan"), "", " \n")),
    ],
)
def test_a_cell_is_read_by_its_type(value: object, text: str) -> None:
    assert cell_text(value) == text
    assert missing(value) == (text == "")


def test_pandas_own_missing_values_are_missing() -> None:
    import pandas

    assert cell_text(pandas.NA) == cell_text(pandas.NaT) == cell_text(pandas.Series([None, 1.0])[0]) == ""
    assert [empty(value) for value in ("[]", [], {}, [0], 0)] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "Is it?", "output": False}, [("user", "Is it?"), ("assistant", "false")]),
        ({"instruction": "How many?", "output": 0}, [("user", "How many?"), ("assistant", "0")]),
        (
            {"instruction": "As JSON.", "output": {"a": None}},
            [("user", "As JSON."), ("assistant", '{"a": null}')],
        ),
        ({"instruction": "A", "input": "nan", "output": "B"}, [("user", "A"), ("assistant", "B")]),
        ({"instruction": "A", "input": None, "output": "None"}, [("user", "A"), ("assistant", "None")]),
        ({"Instruction": "A", " Input ": "x", "OUTPUT": "B"}, [("user", "A\n\nx"), ("assistant", "B")]),
        ({"instruction": "A", "context": "x", "response": "B"}, [("user", "A\n\nx"), ("assistant", "B")]),
        ({"question": "A", "answer": 4}, [("user", "A"), ("assistant", "4")]),
        ({"question": "A", "context": "x", "answer": "B"}, [("user", "A\n\nx"), ("assistant", "B")]),
        ({"query": "A", "response": ["B"]}, [("user", "A"), ("assistant", '["B"]')]),
        (
            {"system_prompt": "Be brief.", "question": "A", "response": "B"},
            [("system", "Be brief."), ("user", "A"), ("assistant", "B")],
        ),
        (
            {"instruction": "A", "output": "B", "history": [["1", "2"], ["3", "4"]], "system": "S"},
            [
                *(("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")),
                *(("user", "A"), ("assistant", "B")),
            ],
        ),
        ({"conversation": HELLO}, [("user", "Hello"), ("assistant", "Hi")]),
        ({"messages": json.dumps(HELLO)}, [("user", "Hello"), ("assistant", "Hi")]),
        ({"messages": str(HELLO)}, [("user", "Hello"), ("assistant", "Hi")]),
        (
            {"messages": {"role": ["user", "assistant"], "content": ["Hello", "Hi"]}},
            [("user", "Hello"), ("assistant", "Hi")],
        ),
        ({"messages": HELLO, "system": "S"}, [("system", "S"), ("user", "Hello"), ("assistant", "Hi")]),
        (
            {"messages": [{"role": "developer", "content": "S"}, *HELLO], "system": "S"},
            [("system", "S"), ("user", "Hello"), ("assistant", "Hi")],
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": 41}]},
            [("user", "Hello"), ("assistant", "41")],
        ),
        (
            {
                "messages": [
                    {"role": "Human:", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
                    REPLY,
                ]
            },
            [("user", "a\nb"), ("assistant", "Hi")],
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"town": "Bath"}]}]},
            [("user", "Hello"), ("assistant", '[{"town": "Bath"}]')],
        ),
        (
            {"conversations": [{"from": "Human", "value": "Hello"}, {"from": "bard", "value": "Hi"}]},
            [("user", "Hello"), ("assistant", "Hi")],
        ),
        ({"prompt": HELLO[:1], "completion": "Hi"}, [("user", "Hello"), ("assistant", "Hi")]),
        ({"prompt": "As JSON.", "completion": {"a": 1}}, [("user", "As JSON."), ("assistant", '{"a": 1}')]),
    ],
)
def test_a_row_means_what_its_author_meant(
    row: dict[str, Any], messages: list[tuple[str, str]], tmp_path: Path
) -> None:
    [example] = load(tmp_path, row).examples
    assert [(turn["role"], turn["content"]) for turn in example.messages] == messages
    assert example.row == 1


@pytest.mark.parametrize(
    ("turns", "roles", "changed"),
    [
        ([USER, *HELLO], "ua", "turns of the user in a row joined"),
        ([*HELLO, REPLY], "ua", "turns of the assistant in a row joined"),
        ([REPLY, *HELLO], "ua", "a greeting before the user's first turn left out"),
        ([*HELLO, USER], "ua", "turns after the last reply cut off"),
        (
            [{"role": "system", "content": "S"}, {"role": "developer", "content": "T"}, *HELLO],
            "sua",
            "turns of the system",
        ),
    ],
)
def test_an_order_that_is_clear_is_put_right_and_counted(
    turns: list[Any], roles: str, changed: str, tmp_path: Path
) -> None:
    loaded = load(tmp_path, {"messages": [*HELLO, *HELLO]}, {"messages": turns})
    assert "".join(turn["role"][0] for turn in loaded.examples[-1].messages) == roles
    [reason] = loaded.changed
    assert reason.startswith(changed)
    assert loaded.first[reason].startswith("row 2: ")


@pytest.mark.parametrize(
    ("key", "value", "trained"),
    [
        *(("weight", value, False) for value in (0, 0.0, "0", False)),
        *(("weight", value, True) for value in (1, 1.0, None)),
        *((key, False, False) for key in ("train", "loss", "train_on_turn", "trainable", "training")),
        *((key, True, False) for key in ("masked", "mask", "ignore")),
        ("masked", False, True),
        ("train", "no", False),
    ],
)
def test_a_turn_that_is_not_to_be_trained_is_context(
    key: str, value: object, trained: bool, tmp_path: Path
) -> None:
    [example] = load(tmp_path, {"messages": [USER, REPLY | {key: value}, USER, REPLY]}).examples
    assert len(example.messages) == 4
    assert example.untrained == (frozenset() if trained else {1})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER, REPLY | {"weight": 0}]}, "no reply that is to be trained"),
        ({"messages": [USER, REPLY | {"weight": 0.5}]}, "a weight other than 0 and 1"),
        ({"messages": [USER, REPLY | {"tool_calls": [{"id": "1"}]}]}, TOOLS),
        ({"messages": HELLO, "tools": '[{"name": "f"}]'}, f"{TOOLS}; where no reply calls one: {UNUSED}"),
        ({"messages": [USER, {"from": "function_call", "value": "{}"}, REPLY]}, TOOLS),
        ({"messages": HELLO, "images": ["a.png"]}, PICTURES),
        ({"messages": [{"role": "user", "content": [PICTURE]}, REPLY]}, PICTURES),
        ({"messages": [USER, REPLY | {"reasoning_content": {"a": 1}}]}, "a thought that is no text"),
        ({"messages": HELLO, "train": False}, "its row says that it isn't to be trained"),
    ],
)
def test_what_cannot_be_honoured_is_counted_with_its_true_reason(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    whole = {"train": True} if "train" in row else {}
    loaded = load(tmp_path, {"messages": [*HELLO, *HELLO], "tools": [], "images": None} | whole, row)
    assert loaded.left_out == {reason: 1}
    assert loaded.first[reason].startswith("row 2")


def test_a_list_of_tools_that_no_reply_calls_can_be_set_aside(tmp_path: Path) -> None:
    row = {"messages": HELLO, "tools": '[{"name": "f"}]'}
    loaded = load(tmp_path, row, columns={"unused": "tools"})
    assert (len(loaded.examples), loaded.left_out) == (1, {})


def test_a_rejected_answer_is_not_trained(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": str(i), "label": i > 1} for i in range(4)]
    loaded = load(tmp_path, *rows)
    assert loaded.left_out == {"label false: an answer that people rejected": 2}
    assert loaded.on_purpose


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_stays_with_its_reply(key: str, tmp_path: Path) -> None:
    thinking = REPLY | {"reasoning_content": "Hm."}
    [example] = load(tmp_path, {"messages": [USER, REPLY | {key: "Hm.\n"}]}).examples
    assert example.messages == [USER, thinking]
    [example] = load(tmp_path, {"question": "Hello", "answer": "Hi", key: "Hm."}).examples
    assert example.messages == [USER, thinking]
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hi"}]
    [example] = load(tmp_path, {"messages": [USER, REPLY | {"content": parts}]}).examples
    assert example.messages == [USER, thinking]


def test_what_is_not_used_is_named_with_its_first_row(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {"messages": HELLO, "id": 1},
        {"messages": [USER | {"name": "Ann"}, REPLY, USER, REPLY], "id": 2, "score": None},
    )
    assert loaded.not_used == {"column 'id'": 2, "'name' of a turn": 1}
    assert loaded.first["'name' of a turn"] == "row 2: 'Ann'"


def test_the_split_that_the_data_names_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "completion": "x", "split": "test" if i < 3 else "train"} for i in range(30)]
    examples = load(tmp_path, *rows).examples
    assert [e.split for e in examples] == ["test"] * 3 + ["train"] * 27
    splits = split_examples(examples, Data(path="rows.jsonl", validation=0.3))
    assert splits.test == examples[:3]
    assert len(splits.train) + len(splits.validation) == 27
    assert splits.validation
    loaded = load(tmp_path, *(row | {"split": "train"} for row in rows))
    assert {e.split for e in loaded.examples} == {""}
    assert loaded.not_used == {"column 'split'": 30}


def test_columns_can_be_said_in_the_recipe(tmp_path: Path) -> None:
    columns = {"prompt": "frage", "completion": "antwort"}
    [example] = load(tmp_path, {"frage": "Hello", "antwort": "Hi", "prompt": "?"}, columns=columns).examples
    assert example.messages == HELLO
    with pytest.raises(TrainError, match=r"data.columns: .* has no column 'antwort'; it has frage"):
        load(tmp_path, {"frage": "Hello"}, columns=columns)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            r"preferences.*data.columns: \{completion: chosen\}",
        ),
        ({"chosen": HELLO, "rejected": HELLO}, r"data.columns: \{messages: chosen\}"),
        ({"text": "a", "label": 1}, r"the labels would not be trained.*\{prompt: text, completion: label\}"),
        (
            {"problem": "a", "solution": "b", "answer": "c"},
            "could be prompt-completion by 'answer' or 'solution'",
        ),
    ],
)
def test_columns_that_change_the_meaning_are_refused_with_a_cure(
    row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match=said):
        load(tmp_path, row)


def test_parquet_keeps_types_and_turns(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"messages": [USER, REPLY | {"weight": None, "tool_calls": None}], "at": datetime.date(2024, 5, 1)}
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    loaded = load_examples(Data(path=str(tmp_path / "rows.parquet")), seed=0)
    assert loaded.examples[0].messages == HELLO
    assert loaded.not_used == {"column 'at'": 1}
