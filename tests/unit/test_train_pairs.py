"""Rows of preferences: how they are read, and which of them are left out, with what reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import TrainError
from train.data import load_examples
from train.dpo_config import Dpo
from train.examples import Encoded, Example, Loaded
from train.pair_batches import PairOrder, pair_of
from train.preference_scores import preference_scores
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


def encoded(length: int, other: int) -> Encoded:
    """A pair of such lengths, whose last two tokens count."""
    sides = [Encoded([7] * n, [0] * (n - 2) + [1, 1], []) for n in (length, other)]
    return replace(sides[0], rejected=sides[1])


def test_pairs_are_padded_and_each_counts_once() -> None:
    rows = [encoded(4 + number, 9 - number) for number in range(5)]
    order = PairOrder(rows, Dpo(per_device_train_batch_size=2, num_train_epochs=2))
    assert (order.steps_per_epoch, order.steps) == (3, 6)
    assert sorted(row for step in range(3) for rows in order.micro_batches(step) for row in rows) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert [order.trained(step) for step in range(3)] == [2, 2, 1]
    assert order.visited == [0, 1, 2, 3, 4]
    batch = order.batch([0, 4])
    assert batch.input_ids.shape == (4, 9)
    assert batch.tokens == 4 + 8 + 9 + 5
    assert order.tokens([0, 4]) == 4 * 9
    assert batch.attention_mask.sum(1).tolist() == [4, 8, 9, 5]  # chosen, chosen, rejected, rejected
    assert batch.completion_mask[2].tolist() == [0] * 7 + [1, 1]
    short = PairOrder(rows, Dpo(per_device_train_batch_size=2, max_steps=2))
    short.reference = {row: (-float(row), -9.0) for row in short.visited}
    assert len(short.visited) == 4
    known = short.batch(short.micro_batches(0)[0]).inputs()
    assert known["ref_chosen_logps"].tolist() == [-float(row) for row in short.micro_batches(0)[0]]
    assert known["ref_rejected_logps"].tolist() == [-9.0, -9.0]
    assert short.batch([]).trained == 0  # of a process that has no pairs left in a step


def test_a_pair_that_a_base_makes_equal_is_left_out() -> None:
    example = Example([ASK, GOOD], "", "", row=3, rejected=Example([ASK, BAD], "", ""))
    one = Encoded([1, 2], [0, 1], [])
    loaded = Loaded([example], 1)
    assert pair_of(example, [one], [one], loaded) == []
    assert loaded.left_out == {"chosen and rejected are the same for this base": 1}
    assert not loaded.examples
    assert pair_of(example, [one], [replace(one, ids=[1, 3])], Loaded()) != []
    assert pair_of(example, [one, one], [one], loaded) == []


def test_scores_are_of_the_margins_before_and_after() -> None:
    assert preference_scores([2.0, -1.0, 0.0, 1.0], [], 0.1) == {"preferred": 0.5, "margin": 0.5}
    after = preference_scores([2.0, -1.0, 3.0, 1.0], [1.0, 0.0, 1.0, 1.0], 0.1)
    assert after["preferred"] == 0.75
    assert after["reward_accuracy"] == 0.5
    assert after["reward_margin"] == pytest.approx(0.05)
    assert preference_scores([], [], 0.1) == {}
