"""What a run's `prompts.jsonl` may say, and the line that is named when it says something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConvertError
from core.rows import load_rows, save_rows

GOOD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "ids": [1, 2, 3],
    "mask": [0, 0, 1],
    "split": "test",
}


def test_rows_come_back_as_they_were_saved(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    rows = load_rows(path)
    save_rows(path, rows)
    assert load_rows(path) == rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": [0, 1]}, "mask has 2 entries for 3 ids"),
        ({"mask": [0, 1, 2]}, "others than 0 and 1"),
        ({"ids": [1, 2, -3]}, "negative"),
        ({"ids": [], "mask": []}, "ids are missing"),
        ({"split": "dev"}, "split is 'dev', not train or test"),
        ({"messages": [{"role": "user", "content": None}]}, "both text"),
        ({"rendered": "yesterday"}, "Invalid isoformat string"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(ConvertError, match=r"prompts\.jsonl, line 2: ") as caught:
        load_rows(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ['{"messages": ', "[]", "{}"])
def test_a_line_that_is_no_row_is_named_too(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(ConvertError, match=r"line 1"):
        load_rows(path)


def test_an_empty_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.touch()
    with pytest.raises(ConvertError, match="is empty; train again, or remove it"):
        load_rows(path)
