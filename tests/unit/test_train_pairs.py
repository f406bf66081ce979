"""Rows of preferences: how they are read, and which of them are left out, with what reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import TrainError
from train.data import load_examples
from train.examples import Example, Loaded
from train.recipe import RECIPES
from train.sections import Data
from train.tasks import make_quote_pairs

ASK = {"role": "user", "content": "Who wrote it?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


GOOD, BAD = said("Seneca."), said("Me.")


def load(tmp_path: Path, *rows: dict[str, Any], preferences: bool = True, **data: Any) -> Loaded:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(Data(path=str(path), **data), 0, preferences)


def the_pair(loaded: Loaded) -> Example:
    (example,) = loaded.examples
    assert example.rejected
    return example


ONE_PAIR: list[dict[str, Any]] = [
    {"prompt": "Who wrote it?", "chosen": "Seneca.", "rejected": "Me."},
    {"question": "Who wrote it?", "chosen": "Seneca.", "rejected": "Me."},
    {"instruction": "Who wrote it?", "input": "", "chosen": "Seneca.", "rejected": "Me."},
    {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [ASK], "chosen": GOOD, "rejected": BAD},
    {"prompt": [ASK], "chosen": "Seneca.", "rejected": "Me."},
    {"prompt": "Who wrote it?", "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "Who wrote it?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},  # UltraFeedback
    {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    {"chosen": json.dumps([ASK, GOOD]), "rejected": json.dumps([ASK, BAD])},
    {"prompt": "Who wrote it?", "response_chosen": "Seneca.", "response_rejected": "Me."},
    {
        "chosen": "\n\nHuman: Who wrote it?\n\nAssistant: Seneca.",  # Anthropic's HH
        "rejected": "\n\nHuman: Who wrote it?\n\nAssistant: Me.",
    },
    {"prompt": "\n\nHuman: Who wrote it?\n\nAssistant:", "chosen": " Seneca.", "rejected": " Me."},
    {
        "conversations": [{"from": "human", "value": "Who wrote it?"}],  # LLaMA-Factory
        "chosen": {"from": "gpt", "value": "Seneca."},
        "rejected": {"from": "gpt", "value": "Me."},
    },
    {
        "prompt": "Who wrote it?",
        "chosen": "Seneca.",
        "rejected": "Me.",
        "score_chosen": 8,
        "score_rejected": 7.5,
    },
]


@pytest.mark.parametrize("row", ONE_PAIR)
def test_a_pair_is_read_in_all_its_forms(row: dict[str, Any], tmp_path: Path) -> None:
    example = the_pair(loaded := load(tmp_path, row))
    assert example.messages == [ASK, GOOD]
    assert example.rejected
    assert example.rejected.messages == [ASK, BAD]
    assert example.untrained == example.rejected.untrained == frozenset()
    assert example.group == "Who wrote it?"
    assert not loaded.left_out
    assert not loaded.not_used


def test_what_stands_before_the_answers_is_context(tmp_path: Path) -> None:
    before: list[dict[str, str]] = [SYSTEM, ASK, said("Guess."), {"role": "user", "content": "Seneca?"}]
    row: dict[str, Any] = {"chosen": [*before, said("Yes.")], "rejected": [*before, said("No.")]}
    example = the_pair(load(tmp_path, row))
    assert example.untrained == {2}
    assert example.messages[:4] == before
    row = {"system": "Be brief.", "question": "Who wrote it?", "chosen": "Seneca.", "rejected": "Me."}  # Orca
    assert the_pair(load(tmp_path, row)).messages == [SYSTEM, ASK, GOOD]


def test_answers_of_several_turns_are_told_of(tmp_path: Path) -> None:
    more = {"role": "user", "content": "Sure?"}
    row = {"chosen": [ASK, GOOD, more, said("Yes.")], "rejected": [ASK, BAD]}
    loaded = load(tmp_path, row)
    assert the_pair(loaded).untrained == frozenset()
    assert list(loaded.changed) == [
        "answers of several turns: those of the assistant are compared, one after the other"
    ]


OUT: list[tuple[dict[str, Any], str]] = [
    ({"chosen": "Me.", "rejected": "Me."}, "chosen and rejected are the same"),
    ({"chosen": "Me.", "rejected": "  Me.\n"}, "chosen and rejected are the same"),
    ({"chosen": "Me.", "rejected": ""}, "no rejected answer"),
    ({"chosen": None, "rejected": "Me."}, "no chosen answer"),
    ({"chosen": [ASK, said(" ")], "rejected": [ASK, BAD]}, "an empty turn"),
    ({"chosen": [], "rejected": [ASK, BAD]}, "no chosen answer"),
    ({"rejected": "Me."}, "no chosen answer"),
    (
        {"prompt": "", "chosen": [{"role": "user", "content": "Other?"}, GOOD], "rejected": [ASK, BAD]},
        "chosen and rejected don't answer the same prompt",
    ),
    (
        {"prompt": None, "chosen": [SYSTEM, ASK, GOOD], "rejected": [ASK, BAD]},
        "chosen and rejected don't answer the same prompt",
    ),
    (
        {"prompt": "Something else", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        "the prompt isn't in the chats beside it",
    ),
    (
        {"prompt": [ASK, GOOD], "chosen": "And me.", "rejected": "Not me."},
        "a prompt that ends with the assistant's words",
    ),
    (
        {"chosen": [ASK, GOOD], "rejected": [ASK, GOOD, ASK, BAD]},
        "one of the two chats is the beginning of the other",
    ),
    ({"prompt": None, "chosen": "Sky is blue", "rejected": "Sky is red"}, "no prompt: neither a column"),
    ({"chosen": [{"role": "tool", "content": "3"}, GOOD], "rejected": "Me."}, "tools are used"),
    (
        {"chosen": [{**GOOD, "tool_calls": [{"function": {"name": "f"}}]}], "rejected": "Me."},
        "tools are used",
    ),
    ({"chosen": "Seneca.", "rejected": "Me.", "images": ["a.png"]}, "a picture, sound or video"),
    ({"chosen": "Seneca.", "rejected": "Me.", "weight": 0.5}, "column 'weight': a weight other than 0 and 1"),
    ({"chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 4}, "the scores say the opposite"),
    ({"chosen": "a", "rejected": "b", "score_chosen": 4, "score_rejected": 4}, "the scores are equal"),
    (
        {"chosen": "a", "rejected": "b", "chosen-rating": 4.0, "rejected-rating": 5},
        "the scores say the opposi",
    ),
    (
        {"chosen": "a", "rejected": "b", "chosen_score": "2", "rejected_score": "3"},
        "the scores say the opposi",
    ),
    (
        {"chosen": "a", "rejected": "b", "reward_chosen": -2, "reward_rejected": -1},
        "the scores say the opposi",
    ),
    ({"chosen": "a", "rejected": "b", "margin": -1.5}, "the margin says the opposite"),
    ({"chosen": "a", "rejected": "b", "margin": 0}, "the margin is 0"),
]


@pytest.mark.parametrize(("row", "reason"), OUT)
def test_a_row_that_is_no_preference_is_left_out(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = {"prompt": "Another question?", "chosen": "Yes.", "rejected": "No."}
    loaded = load(tmp_path, good, {"prompt": "Who wrote it?"} | row)
    assert len(loaded.examples) == 1
    ((found, count),) = loaded.left_out.items()
    assert found.startswith(reason)
    assert count == 1
    assert not loaded.on_purpose


def test_the_same_pair_counts_once_and_its_opposite_is_told_of(tmp_path: Path) -> None:
    row = {"prompt": "Who wrote it?", "chosen": "Seneca.", "rejected": "Me."}
    turned = row | {"chosen": "Me.", "rejected": "Seneca."}
    loaded = load(tmp_path, row, row, turned)
    assert len(loaded.examples) == 2
    assert loaded.left_out == {"the same as an earlier row": 1}
    assert loaded.first["the opposite of an earlier row: both are trained"] == "row 3: row 1"


def test_texts_that_are_rendered_share_their_prompt(tmp_path: Path) -> None:
    begin = "<|im_start|>user\nWho wrote it?<|im_end|>\n<|im_start|>assistant\n"
    row = {"chosen": f"{begin}Seneca.<|im_end|>", "rejected": f"{begin}Sen.<|im_end|>"}
    example = the_pair(load(tmp_path, row))
    assert (example.prompt, example.rendered, example.messages) == (begin, True, [])
    assert example.rejected
    assert example.rejected.text == row["rejected"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "completion": "b"}, r"has no pairs .* say SFTConfig in place of DPOConfig"),
        ({"messages": [ASK, GOOD]}, r"has no pairs .* say SFTConfig in place of DPOConfig"),
        ({"prompt": "a", "completion": "b", "label": True}, r"one answer a row and a 'label' .* as for KTO"),
        ({"prompt": "a", "chosen": "b"}, r"it has prompt, chosen\. .*data.columns.chosen=BETTER"),
    ],
)
def test_rows_without_pairs_are_refused(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=reason):
        load(tmp_path, row)


@pytest.mark.parametrize("row", ONE_PAIR[:-1])
def test_pairs_in_a_recipe_for_answers_are_refused(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        TrainError, match=r"preferences. To train on them, say DPOConfig in place of SFTConfig"
    ):
        load(tmp_path, row, preferences=False)


def test_the_column_beside_pairs_can_be_trained_on_purpose(tmp_path: Path) -> None:
    row = {"messages": [ASK, GOOD], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}
    with pytest.raises(TrainError, match=r"alone, say --set data.columns.messages=messages"):
        load(tmp_path, row, preferences=False)
    loaded = load(tmp_path, row, preferences=False, columns={"messages": "messages"})
    assert loaded.examples[0].messages == [ASK, GOOD]


def test_columns_can_be_said(tmp_path: Path) -> None:
    row = {"ask": "Who wrote it?", "better": "Seneca.", "worse": "Me.", "note": "x"}
    columns = {"prompt": "ask", "chosen": "better", "rejected": "worse"}
    loaded = load(tmp_path, row, columns=columns)
    assert the_pair(loaded).messages == [ASK, GOOD]
    assert loaded.not_used == {"column 'note'": 1}
    with pytest.raises(TrainError, match=r"data.task: quotes makes answers, and DPOConfig wants pairs"):
        load(tmp_path, row, columns=columns, task="quotes")
    with pytest.raises(TrainError, match=r"data.format: text is for plain texts"):
        load(tmp_path, row, columns=columns, format="text")


def test_the_tours_pairs_are_made_from_its_quotes(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    assert make_quote_pairs.main(["--out", str(out)]) == 0
    assert out.read_bytes() == (RECIPES / "quotes-pairs.jsonl").read_bytes()
    loaded = load_examples(Data(path=str(out), group_by="author"), 0, preferences=True)
    assert len(loaded.examples) == 262
    assert not loaded.left_out
    assert not loaded.not_used
