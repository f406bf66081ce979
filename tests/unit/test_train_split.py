"""The split: fixed, by groups, and without a text in two of its parts."""

from __future__ import annotations

import pytest

from core.errors import TrainError
from train.examples import Example
from train.sections import Data
from train.split import NAMES, split_examples, split_of


def rows_of(groups: int, per_group: int = 1) -> list[Example]:
    return [Example([], f"text {g} {i}", f"group {g}") for g in range(groups) for i in range(per_group)]


def test_shares_are_about_those_asked_for_and_groups_stay_together() -> None:
    data = Data(path="x", validation=0.1, test=0.2)
    splits = split_examples(rows_of(2000, 3), data)
    assert 0.17 * 6000 < len(splits.test) < 0.23 * 6000
    assert 0.08 * 6000 < len(splits.validation) < 0.12 * 6000
    groups = [{example.group for example in getattr(splits, name)} for name in NAMES]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 2000
    assert sum(len(getattr(splits, name)) for name in NAMES) == 6000


def test_the_split_of_a_group_is_fixed() -> None:
    """These must never change: else what was a test row of one run is trained on in the next."""
    data = Data(path="x")
    assert [split_of(f"group {g}", data) for g in (0, 5, 8, 9, 13)] == [
        "train",
        "test",
        "test",
        "validation",
        "validation",
    ]
    few, many = split_examples(rows_of(100), data), split_examples(rows_of(1000), data)
    assert {example.text for example in few.test} < {example.text for example in many.test}


def test_a_text_that_is_tested_is_trained_in_no_other_group() -> None:
    data = Data(path="x")
    doubled = [*rows_of(300), *(Example([], f"TEXT  {g} 0", f"other {g}") for g in range(300))]
    splits = split_examples(doubled, data)
    texts = [{" ".join(e.text.lower().split()) for e in getattr(splits, name)} for name in NAMES]
    assert not texts[0] & texts[2]
    assert not texts[0] & texts[1]
    assert not texts[1] & texts[2]
    assert splits.repeated + sum(len(getattr(splits, name)) for name in NAMES) == 600
    assert splits.repeated > 0


def test_few_groups_train_without_the_other_splits_and_it_is_said() -> None:
    one = [Example([], f"text {i}", "the only author") for i in range(50)]
    splits = split_examples(one, Data(path="x"))
    assert (len(splits.train), splits.validation, splits.test) == (50, [], [])
    assert splits.notes[0].startswith("note: no validation split, as 50 rows in 1 group (one question")
    assert "the last adapter is kept" in splits.notes[0]
    assert splits.notes[1].startswith("note: no test split, as 50 rows in 1 group (")
    assert not split_examples(one, Data(path="x", validation=0, test=0)).notes  # as it was asked
    with pytest.raises(TrainError, match=r"the train split is empty.*lower data\.validation and data\.test"):
        split_examples(rows_of(50), Data(path="x", validation=0.5, test=0.5))


def test_one_row_is_trained_wherever_its_hash_falls() -> None:
    for group in range(30):  # of these, test_the_split_of_a_group_is_fixed has some of each split
        splits = split_examples(rows_of(30)[group : group + 1], Data(path="x"))
        assert (len(splits.train), splits.repeated, len(splits.notes)) == (1, 0, 2)


def test_the_same_answer_to_all_questions_doesnt_empty_the_train_split() -> None:
    answer = {"role": "assistant", "content": "so " * 9}
    rows = [Example([{"role": "user", "content": f"q{i}"}, answer], "", f"q{i}") for i in range(40)]
    splits = split_examples(rows, Data(path="x"))
    assert (len(splits.train), splits.repeated) == (40, 0)


def test_rows_that_the_data_holds_out_are_never_trained() -> None:
    held = [Example([], f"text {i}", "", split="test") for i in range(3)]
    # by its hash, the only other row is held out too (see the test of fixed groups)
    other = Example([], "text 3", "group 5")
    splits = split_examples([*held, other], Data(path="x"))
    assert (splits.train, splits.test) == ([other], held)
    with pytest.raises(TrainError, match=r"all 3 rows of x are named .*, none train"):
        split_examples(held, Data(path="x"))
