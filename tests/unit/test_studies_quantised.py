"""The page of the study of quantised bases says what was measured; and the rows that it is measured on."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cells import FILE, Results
from bench.short_run import spikes
from bench.task_sets import OTHER, TEST, TRAIN, Row, content_of, load_tasks, reworded
from core.errors import ChatError
from studies.quantised import CALIBRATION, PLAN, STUDY, Plan
from studies.quantised_report import ARMS, DATA

PAGES = Path(__file__).resolve().parents[2] / "docs" / "studies"
RESULTS = sorted(PAGES.glob("quantised*/results.json"))
CONTENT: dict[str, Any] = json.loads((PAGES / "quantised" / "results.json").read_text(encoding="utf-8"))
TASKS = load_tasks(DATA)


def plain(row: Row) -> str:
    """Question and answer, by their letters: two quotations can begin alike."""
    return re.sub(r"\W", "", (row.text + row.answer).lower())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_rows_that_are_trained_are_not_tested(task: Any) -> None:
    train, test = (task.rows(split, 1000) for split in (TRAIN, TEST))
    assert len(train) >= 24
    assert len(test) >= 12
    assert not {plain(row) for row in train} & {plain(row) for row in test}


def test_labels_are_balanced() -> None:
    for split in (TRAIN, TEST, OTHER):
        answers = [row.answer for row in TASKS["sentiment"].rows(split, 1000)]
        assert answers.count("positive") * 2 == len(answers)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("change", ["typos", "paraphrase"])
def test_a_change_changes_the_prompt_and_never_the_answer(task: str, change: str) -> None:
    row = Row(TASKS[task], "The soup came hot and the waiter remembered my name.", "yes")
    (other,) = reworded([row])[change]
    assert other.messages[0] != row.example().messages[0]
    assert other.messages[1] == row.example().messages[1]
    assert change != "typos" or TASKS[task].asked[0].partition("{}")[0] in other.messages[0]["content"]


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


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.parent.name)
def test_the_page_is_what_its_results_say(results: Path) -> None:
    content = json.loads(results.read_text(encoding="utf-8"))
    page = results.parent.with_suffix(".md")
    shown = re.findall(r"^!\[.*\]\((.*)\)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [Path(name).stem for name in shown] == list(STUDY.draw(content))
    assert page.read_text(encoding="utf-8") == STUDY.page(content, {Path(name).stem: name for name in shown})
    assert all((page.parent / name).is_file() for name in shown)


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.parent.name)
def test_what_was_measured_is_gone_on_with(results: Path) -> None:
    """Settings that differ would be refused."""
    settings = json.loads(results.read_text(encoding="utf-8"))["settings"]
    kept = {name: settings[name] for name in ("base", "device")}
    assert settings == PLAN["full"] | {"data": content_of(DATA, CALIBRATION)} | kept
    plan = Plan(Path("base"), Results(results.parent, STUDY.version, settings), "cuda")
    planned = {cell.key: cell.work for line in plan.lines() for cell in line}
    measured = plan.results.content["cells"]
    assert planned.keys() <= measured.keys()
    for key, work in planned.items():
        if "learning_rate" in measured[key]:
            (recipe, *_) = work.args  # type: ignore[attr-defined]
            assert recipe.sft.learning_rate == measured[key]["learning_rate"]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *(("cells", "about", value) for value in (None, {}, "x")),
        *(("settings", key, None) for key in ("sizes", "tasks")),
        ("settings", "sizes", dict.fromkeys(CONTENT["settings"]["sizes"], "1")),
        *(("cells", "task|quotes|nf4|1", value) for value in (None, {"loss": "0.1"})),
        ("cells", "gptq", {"a": 1}),
    ],
)
def test_a_damaged_file_is_told_of_in_a_line(part: str, key: str, value: Any, tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content[part][key] = value
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ChatError, match=r"results\.json is damaged: .*\. Give another folder: --page FOLDER"):
        STUDY.publish(tmp_path, tmp_path / "pages")
    assert not (tmp_path / "pages").exists()


def test_the_answer_tells_of_gaps_that_the_seeds_do_not_make() -> None:
    content = copy.deepcopy(CONTENT)
    runs = {key: cell for key, cell in content["cells"].items() if key.startswith("task|")}
    for key, cell in runs.items():
        _, task, arm, seed = key.split("|")
        gap = {"nf4": 0.5 if task == "quotes" else 0.75, "int8": -0.25 if task == "quotes" else 0}.get(arm, 0)
        cell["loss"] = 2 + 0.01 * int(seed) + gap
    said = "loss (nats a token) differs from bf16's with GPTQ on 0 of 4 tasks, "
    said += "with NF4 by +0.500 to +0.750 on 4 of 4 tasks, "
    assert said + "with int8 by -0.250 on 1 of 4 tasks." in STUDY.page(content, {})
    for key in runs:
        if "|bf16|" in key and not key.endswith("|1"):  # and one seed has no range
            del content["cells"][key]
    assert "In short" not in STUDY.page(content, {})


def test_each_figure_of_the_page_is_where_it_belongs() -> None:
    """In cells that are told apart by their numbers, each of which is in one place of the page."""
    content = copy.deepcopy(CONTENT)
    cells = content["cells"]
    cells["untuned|nf4"]["tasks"]["summary"]["loss"] = 7.001
    cells["untuned|nf4"]["unlike"]["licence"] = 7.002
    cells["about processor"]["load"] = 7.5
    for seed in (1, 2, 3):
        run = cells[f"task|summary|nf4|{seed}"]
        run["loss"], run["score"] = 7.003, 0.703
        for task in TASKS:
            run = cells[f"task|{task}|int8|{seed}"]
            run["changed"] = {change: {"loss": run["loss"] + 7.004} for change in run["changed"]}
            run["obeyed"] = 0.705
            run["evals"][0]["code"], run["evals"][-1]["code"] = 1.0, 8.006
        cells[f"alpha|fixed|64|gptq|{seed}"]["evals"][-1]["loss"] = 7.007
        cells[f"rate|0.01|gptq|{seed}"]["spikes"] = 708
        cells[f"rate|0.01|gptq|{seed}"]["grad_norms"][2] = 709.0
    cells["alpha|fixed|64|gptq|2"]["diverged"] = cells["rate|0.01|gptq|2"]["diverged"] = True
    lost = cells["task|quotes|bf16|2"]  # it diverged: it tells nothing of what is forgotten
    del lost["loss"]
    lost["evals"][-1]["manual"] = 999.0
    text = STUDY.page(content, {})
    assert not re.search(r"\| rise by training \| manual \|.*\d{2}\.\d", text)
    for line in (
        r"\| loss .*, untuned \| summary \| \S+ \| 7.001 \|",
        r"\| loss .*, untuned \| licence \| \S+ \| 7.002 \|",
        r"\| loss \(nats a token\) \| summary \| [^|]* \| 7.003 \(7.003 to 7.003\) \|",
        r"\| score \| summary \| [^|]* \| 0.70 \(0.70 to 0.70\) \|",
        r"\| rise of the loss .* \| case \| [^|]* \| [^|]* \| \+7.004 \(\+7.004 to \+7.004\) \|",
        r"\| obeys .* \|  \| [^|]* \| [^|]* \| 0.70 \(",
        r"\| rise by training \| code \| [^|]* \| [^|]* \| \+7.006 \(",
        r"\| last loss .*, fixed rate \| 64 \| 7.007 \(7.007 to 7.007\), 1 diverged \|",
        r"\| spikes of all runs \| 0.01 \| 2124 \|",
        r"\| largest gradient norm .* \| 0.01 \| 709 \(709 to 709\) \|",
        r"\| runs that diverged .* \| 0.01 \| 1 of 3 \|",
        "with a load of 7.5 on ",
    ):
        assert len(re.findall(line, text)) == 1, line


def test_what_is_not_measured_yet_is_said() -> None:
    content = copy.deepcopy(CONTENT)
    for key in (
        "speed|int8",
        "full|int8",
        "full|bf16",
        "gguf|F16",
        "gguf|Q8_0",
        "gguf|Q5_K_M",
        "gguf|Q4_K_M",
    ):
        del content["cells"][key]
    text = STUDY.page(content, {})
    device = content["settings"]["device"]
    assert f"Not measured yet on {device}: int8.\n" in text
    assert f"Not measured yet on {device}: int8, bf16.\n" in text
    assert "there are no GGUF files in this table" in text
    content["cells"] = {"about": content["cells"]["about"]}
    text = STUDY.page(content, {})
    assert text.count("Not measured yet.") == 9  # the answer and each section
    assert not STUDY.draw(content)


def test_a_note_on_the_measuring_is_in_the_page() -> None:
    content = copy.deepcopy(CONTENT)
    note = content["cells"]["about"].pop("note")
    assert note in STUDY.page(CONTENT, {})
    assert note not in STUDY.page(content, {})


def test_the_speeds_drawn_are_the_medians_of_the_table() -> None:
    content = copy.deepcopy(CONTENT)
    for batch in content["cells"]["speed|nf4"]["batches"].values():
        batch["tokens_per_s"] = [1.0, 2.0, 9.0]
    axes = STUDY.draw(content)["speed"].axes
    drawn = [np.array(line.get_ydata()).tolist() for each in axes for line in each.lines]
    assert [2.0] * len(content["settings"]["batches"]) in drawn
    assert "| tokens/s, all together | 8 | 136 (87 to 141) | 2 (1 to 9) |" in STUDY.page(content, {})


def test_lines_over_alpha_are_at_the_alphas_and_crosses_are_named_where_there_are_any() -> None:
    content = copy.deepcopy(CONTENT)
    for crossed in (False, True):
        runs = [cell for key, cell in content["cells"].items() if key.startswith("alpha|fixed|512|nf4|")]
        for run in runs:
            run["diverged"] = crossed
        made = STUDY.draw(content)["alphas"]
        named = {text.get_text() for text in made.legends[0].get_texts()}
        assert named == {*ARMS} | ({"a run diverged (not in the mean)"} if crossed else set())
        lines = [line for axes in made.axes for line in axes.get_lines() if line.get_linestyle() == "-"]
        assert lines
        ends = [np.array(line.get_xdata()).tolist() for line in lines]
        short = list(range(5))  # of an arm whose last runs all diverged
        assert ends.count(short) == crossed
        assert all(each in (list(range(6)), short) for each in ends)


def test_the_colours_of_the_arms_are_the_same_in_all_plots() -> None:
    drawn: dict[str, Any] = dict(STUDY.draw(CONTENT))
    for name, made in drawn.items():
        for axes in made.axes:
            handles, labels = axes.get_legend_handles_labels()
            found = {(label, handle[0].get_color()) for handle, label in zip(handles, labels, strict=True)}
            assert found >= {("GPTQ", "#d55e00"), ("NF4", "#0072b2"), ("bf16", "#555555")}, name
