"""The scores and comparisons of the study of quantised bases, and that its page says what was measured."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.short_run import spikes
from studies.quantised_cells import verdict
from studies.quantised_plots import draw_alpha, draw_speed
from studies.quantised_report import report
from studies.quantised_tasks import (
    ASKED,
    TASKS,
    Row,
    changed_here,
    load_task,
)

PAGES = Path(__file__).resolve().parents[2] / "docs" / "studies"
CONTENT: dict[str, Any] = json.loads((PAGES / "quantised.json").read_text(encoding="utf-8"))


def plain(row: Row) -> str:
    """Question and answer, by their letters: two quotations can begin alike."""
    return re.sub(r"\W", "", (row.text + row.answer).lower())


@pytest.mark.parametrize("task", TASKS)
def test_rows_that_are_trained_are_not_tested(task: str) -> None:
    train, test = (load_task(task, split, 1000) for split in ("train", "test"))
    assert len(train) >= 24
    assert len(test) >= 12
    assert not {plain(row) for row in train} & {plain(row) for row in test}


def test_labels_are_balanced() -> None:
    for split in ("train", "test", "other"):
        answers = [row.answer for row in load_task("sentiment", split, 1000)]
        assert answers.count("positive") * 2 == len(answers)


@pytest.mark.parametrize("task", ASKED)
@pytest.mark.parametrize("change", ["typos", "paraphrase"])
def test_a_change_changes_the_prompt_and_never_the_answer(task: str, change: str) -> None:
    row = Row(task, "The soup came hot and the waiter remembered my name.", "yes")
    (other,) = changed_here([row])[change]
    assert other.messages[0] != row.example().messages[0]
    assert other.messages[1] == row.example().messages[1]
    assert change != "typos" or ASKED[task][0].partition("{}")[0] in other.messages[0]["content"]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0] * 10, 0),
        ([2.0] * 5 + [3.1] + [2.0] * 4, 1),
        ([2.0] * 5 + [2.9] + [2.0] * 4, 0),
        ([2.0] * 5 + [float("nan")], 1),
        ([9.0, 2.0], 0),
    ],
)
def test_spikes(losses: list[float], expected: int) -> None:
    assert spikes(losses) == expected


def test_a_difference_is_judged_by_the_ranges_of_the_seeds() -> None:
    figures = {"gptq": [2.0, 2.2, 2.4], "nf4": [1.0, 1.1, 1.2], "int8": [1.5], "bf16": [1.9, 2.0, 2.1]}
    said = verdict(figures)
    assert "GPTQ +0.200 (within the spread of the seeds)" in said
    assert "NF4 -0.900 (beyond the spread of the seeds)" in said
    assert "int8 -0.500 (one seed, so no spread to judge by)" in said
    assert verdict({"gptq": [1.0]}) == "There is nothing to compare yet."


@pytest.mark.parametrize("page", sorted(PAGES.glob("quantised*.md")), ids=lambda page: page.name)
def test_the_page_is_what_its_results_say(page: Path) -> None:
    content = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    shown = re.findall(r"^!\[.*\]\((.*)\)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    pictures = {name.removesuffix(".png").removeprefix(f"{page.stem}-"): name for name in shown}
    assert shown
    assert page.read_text(encoding="utf-8") == report(content, pictures)
    assert all((page.parent / name).is_file() for name in shown)


def test_the_answer_tells_of_gaps_that_the_seeds_do_not_make() -> None:
    content = copy.deepcopy(CONTENT)
    runs = {key: cell for key, cell in content["cells"].items() if key.startswith("task|")}
    for key, cell in runs.items():
        _, task, arm, seed = key.split("|")
        gap = {"nf4": 0.5 if task == "quotes" else 0.75, "int8": -0.25 if task == "quotes" else 0}.get(arm, 0)
        cell["loss"] = 2 + 0.01 * int(seed) + gap
    said = "differs from bf16's with GPTQ on 0 of 4 tasks, with NF4 by +0.500 to +0.750 on 4 of 4 tasks, "
    assert said + "with int8 by -0.250 on 1 of 4 tasks." in report(content, {})
    for key in runs:
        if "|bf16|" in key and not key.endswith("|1"):  # and one seed has no range
            del content["cells"][key]
    assert "In short" not in report(content, {})


def test_the_speeds_drawn_are_the_medians_of_the_table() -> None:
    content = copy.deepcopy(CONTENT)
    for batch in content["cells"]["speed|nf4"]["batches"].values():
        batch["tokens_per_s"] = [1.0, 2.0, 9.0]
    drawn = [np.array(line.get_ydata()).tolist() for each in draw_speed(content).axes for line in each.lines]
    assert [2.0] * len(content["settings"]["batches"]) in drawn


def test_lines_over_alpha_are_at_the_alphas_and_crosses_are_named_where_there_are_any() -> None:
    content = copy.deepcopy(CONTENT)
    for crossed in (False, True):
        runs = [cell for key, cell in content["cells"].items() if key.startswith("alpha|fixed|512|nf4|")]
        for run in runs:
            run["diverged"] = crossed
        made = draw_alpha(content)
        assert ("crosses" in made.get_suptitle()) is crossed
        lines = [line for axes in made.axes for line in axes.get_lines() if line.get_linestyle() == "-"]
        assert lines
        assert all(np.array(line.get_xdata()).tolist() == list(range(6)) for line in lines)
