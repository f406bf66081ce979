"""Arms side by side: tables, sentences and plots say the same of the same rows; and the shell of a study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cells import Results
from bench.comparison import (
    Measure,
    Panel,
    Section,
    across,
    against,
    in_short,
    table_by_arm,
    table_of,
    verdict,
)
from bench.comparison_plots import draw, draw_by_arm, drawn
from bench.figures import by_arm, by_seed, measured
from bench.study import Study, shown
from core.errors import ChatError

ARMS = {"int4": {"color": "#d55e00"}, "16 bit": {"color": "#555555"}, "int8": {"color": "#009e73"}}
RUNS: dict[str, dict[str, list[Any]]] = {
    "quotes": {
        "int4": [{"loss": 2.5}, {"loss": 3.5}, {"loss": None}],
        "16 bit": [{"loss": 2.0}, {"loss": 2.2}],
    },
    "summary": {"int4": [{"loss": 2.0}], "16 bit": [{"loss": 2.1}, {"loss": 2.3}], "int8": []},
    "nothing": {},
}
LOSS = measured("loss", "task", RUNS, "loss", form="{:.2f}")


def test_a_table_has_what_was_measured_and_no_more() -> None:
    marked = replace(LOSS, marks={"quotes": {"int4": "1 diverged"}})
    assert table_of([marked], ARMS).splitlines() == [
        "| figure | task | int4 | 16 bit | int8 |",
        "| --- | --- | --- | --- | --- |",
        "| loss | quotes | 3.00 (2.50 to 3.50), 1 diverged | 2.10 (2.00 to 2.20) |  |",
        "| loss | summary | 2.00 | 2.20 (2.10 to 2.30) |  |",
    ]
    assert LOSS.lacking([*ARMS, "GPTQ"], " here") == "Not measured yet here: int8, GPTQ."
    assert LOSS.lacking(["16 bit"]) == Measure("loss", "task", {}).lacking(ARMS) == ""
    counts = replace(LOSS, name="runs", shown=lambda values: str(len(values)))
    assert table_by_arm([LOSS, counts], ["16 bit"], "summary").endswith(
        "| 16 bit | 2.20 (2.10 to 2.30) | 2 |"
    )


def test_sentences_say_by_how_much_and_whether_seeds_do_as_much() -> None:
    assert against(LOSS, "16 bit").splitlines() == [
        "- loss, quotes. Against 16 bit: int4 +0.90 (beyond the spread of the seeds).",
        "- loss, summary. Against 16 bit: int4 -0.20 (one seed, so no spread to judge by).",
    ]
    ends = Measure("rise", "alpha", {"16": {"a": [1.0, 2.0]}, "512": {"a": [1.5, 2.5]}}, "{:+z.1f}")
    assert across(ends) == "- rise, alpha 512 against 16: a +0.5 (within the spread of the seeds)."
    assert across(LOSS) == across(Measure("loss", "task", {})) == ""
    same = Measure("score", "task", {"quotes": {"int4": [0.1, 0.3], "16 bit": [0.2, 0.4]}})
    assert in_short([LOSS, same], "16 bit", "a trained model's") == (
        "**In short: where the ranges over the seeds don't overlap, a trained model's loss differs from "
        "16 bit's with int4 by +0.90 on 1 of 1 tasks. A trained model's score differs from 16 bit's "
        "with int4 on 0 of 1 tasks.**"
    )
    assert in_short([measured("loss", "task", {}, "loss")], "16 bit", "a") == ""


def test_a_verdict_counts_what_the_sentences_say() -> None:
    begins = "**Beyond the spread of the seeds are "
    assert verdict([LOSS], "16 bit") == f"{begins}1 of 1 differences from 16 bit.**"
    rows = {
        "a": {"x": [1.0, 2.0], "y": [3.0, 4.0], "z": [1.0, 1.0]},
        "b": {"x": [1.0, 2.0], "y": [1.5, 1.6], "z": [5.0]},
    }
    measure = Measure("loss", "task", rows)
    counted = f"{begins}1 of 3 differences from x: y 1 of 2, z 0 of 1.**"
    assert verdict([measure], "x") == counted
    assert against(measure, "x").count("beyond the spread") == 1
    assert verdict([measure, measure], "x").startswith(f"{begins}2 of 6 ")
    assert verdict([Measure("loss", "task", {"a": {"x": [1.0], "y": [2.0]}})], "x") == ""


def test_an_arm_of_which_runs_diverged_is_not_compared() -> None:
    rows = {
        "16": {"a": [1.0, 2.0], "b": [5.0, 6.0], "c": [1.0, 2.0]},
        "512": {"a": [1.0, 2.0], "b": [5.0], "c": []},
    }
    marks = {"512": {"b": "1 diverged", "c": "2 diverged"}}
    measure = Measure("loss", "alpha", rows, "{:.1f}", marks=marks)
    beyond = "(beyond the spread of the seeds)"
    assert measure.gaps("512", "a") == {"b": "1 diverged", "c": "2 diverged"}
    assert measure.gaps("512", "c") == {"b": "1 diverged", "c": "2 diverged"}  # nor beside such a control
    assert measure.gaps("16", "a")["b"] == f"+4.0 {beyond}"
    assert "a +0.0 (within the spread of the seeds); b 1 diverged; c 2 diverged." in across(measure)
    assert verdict([measure], "a").endswith(" 1 of 2 differences from a.**")
    assert measure.pairs("c") == {"a": [([1.0, 2.0], [1.0, 2.0])], "b": [([5.0, 6.0], [1.0, 2.0])]}
    assert table_of([measure], "abc").splitlines()[-1] == (
        "| loss | 512 | 1.5 (1.0 to 2.0) | 5.0, 1 diverged | 2 diverged |"
    )
    none_left = Measure("loss", "alpha", {"512": {"c": []}}, marks=marks)
    assert "| loss | 512 | 2 diverged |" in table_of([none_left], "c")
    panel = Panel(Measure("loss", "alpha", rows, marks=marks, mark="a run diverged"), joined=True)
    (axes,) = draw("Alphas", [panel], {"a": {"color": "k"}, "b": {"color": "b"}, "c": {"color": "r"}}).axes
    crosses = [line for line in axes.lines if line.get_marker() == "x" and len(np.array(line.get_xdata()))]
    assert [line.get_color() for line in crosses] == ["b", "r"]
    assert {float(np.array(line.get_ydata())[0]) for line in crosses} == {1.0}  # of the axes' height
    assert axes.get_ylim()[1] < 7


CELLS = {
    f"task|{task}|{arm}|{seed}": {"evals": [{"loss": 2.0}, {"loss": 1.0 + seed}], "diverged": seed == 2}
    for task in ("quotes", "summary")
    for arm in ("gptq", "nf4")
    for seed in (1, 2, 3)
}
CELLS["task|quotes|gptq|3"] = {"evals": [], "diverged": True, "norms": [1.0, None, 7.0]}
KEYS = {"GPTQ": "gptq", "NF4": "nf4", "int8": "int8"}


def test_a_measure_is_read_off_the_cells() -> None:
    places = {"quotes": by_arm(CELLS, "task|quotes", KEYS)}
    last = measured("last", "task", places, "evals.-1.loss", marked="diverged")
    assert last.rows == {"quotes": {"GPTQ": [2.0], "NF4": [2.0, 4.0]}}  # without the diverged
    assert last.marks == {"quotes": {"GPTQ": "2 diverged", "NF4": "1 diverged"}}
    assert last.mark == "a run diverged (not in the mean)"
    rise = measured("rise", "what", {"loss": places["quotes"]}, "evals.-1.{}", "evals.0.{}")
    assert rise.rows["loss"]["NF4"] == [0.0, 1.0, 2.0]
    largest = measured("norm", "task", places, "norms.max")
    assert largest.rows == {"quotes": {"GPTQ": [7.0], "NF4": []}}
    assert not measured("none", "task", places, "evals.5.loss.more").there
    few = by_arm(CELLS, "task|quotes", KEYS, (2,))
    assert measured("count", "task", {"": few}, lambda run: len(run["evals"])).rows[""]["GPTQ"] == [2]


def test_cells_of_a_seed_are_one_value() -> None:
    seeds = by_seed(CELLS, ["task|quotes", "task|summary"], KEYS, having="evals")
    assert [len(each) for each in seeds["GPTQ"]] == [2, 2, 2]
    assert by_seed(CELLS, ["task|quotes", "task|summary"], KEYS, having="norms") == {
        "GPTQ": [[CELLS["task|quotes|gptq|3"]]],
        "NF4": [],
        "int8": [],
    }
    assert seeds["int8"] == []
    last = measured("last", "", {"": seeds}, "evals.-1.loss")
    assert last.rows == {"": {"GPTQ": [2.0, 3.0, 4.0], "NF4": [2.0, 3.0, 4.0]}}


def test_a_section_says_what_it_lacks() -> None:
    text = Section.of([LOSS], [LOSS], [*ARMS, "GPTQ"], "16 bit", ends=True).text
    assert text.startswith("| figure | task | int4 | 16 bit | int8 | GPTQ |\n")
    assert "\n\n- loss, quotes. Against 16 bit: int4 +0.90 " in text
    assert text.endswith(".\n\nNot measured yet: int8, GPTQ.")


def test_a_section_without_figures_says_so_and_draws_nothing() -> None:
    empty = Measure("loss", "task", {"quotes": {}})
    section = Section([table_of([empty], ARMS), against(empty, "16 bit")], "Tasks", [Panel(empty)])
    assert section.text == "Not measured yet."
    assert drawn({"tasks": section}, ARMS) == {}


@pytest.mark.parametrize("joined", [True, False])
def test_a_plot_has_the_means_and_ranges_in_the_colours_of_the_arms(joined: bool) -> None:
    marked = replace(LOSS, marks={"quotes": {"int4": "1 diverged"}}, mark="a run diverged")
    made = draw("Tasks", [Panel(marked, joined=joined, log=True, zero=True, limits=(0.5, 4))], ARMS)
    (axes,) = made.axes
    four = next(line for line in axes.lines if (line.get_color(), line.get_marker()) == ("#d55e00", "o"))
    assert np.array(four.get_ydata()).tolist() == [3.0, 2.0]
    assert four.get_linestyle() == ("-" if joined else "None")
    assert (np.array(four.get_xdata()).tolist() == [0, 1]) is joined
    lines: list[Any] = list(axes.collections)
    ranges = [segment.tolist() for each in lines for segment in each.get_segments()]
    assert [2.5, 3.5] in [[round(y, 9) for _, y in ends] for ends in ranges]
    (legend,) = made.legends
    assert {text.get_text() for text in legend.get_texts()} == {"int4", "16 bit", "a run diverged"}
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "loss"


def test_what_was_before_is_hollow_and_many_arms_are_below_each_other() -> None:
    before = Measure("loss", "task", {"quotes": {"int4": [5.0]}})
    (axes,) = draw("Tasks", [Panel(LOSS, before)], ARMS).axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [np.array(line.get_ydata()).tolist() for line in hollow] == [[5.0]]
    (axes,) = draw_by_arm("Tasks", LOSS, ARMS, "quotes", {0: "-"}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["int4", "16 bit"]


def page(content: Any, files: Any) -> str:
    return f"{len(content['cells'])} cells, {files.get('tasks', 'no plot')}\n"


STUDY = Study(
    "sms",
    1,
    page,
    lambda content: drawn({"tasks": Section([], "Tasks", [Panel(LOSS)])} if content["cells"] else {}, ARMS),
    lambda content: {"bins.json": content["cells"]},
)


def test_a_study_publishes_its_page_and_beside_it_results_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path / "run", 1, {})
    results.put("a", 1)
    given = STUDY.parser("What?").parse_args(["--out", str(tmp_path / "run"), "--minutes", "1"])
    assert STUDY.main(given, ["--minutes", "1"], lambda until: (results, 1, 2)) == 1
    assert "2 cells aren't measured yet; go on with: " in capsys.readouterr().out
    assert (tmp_path / "run" / "report.md").read_text() == "1 cells, tasks.png\n"
    assert STUDY.publish(tmp_path / "run", tmp_path / "pages", "sms-other") == 0
    assert (tmp_path / "pages" / "sms-other.md").read_text() == "1 cells, sms-other/tasks.png\n"
    assert (tmp_path / "pages" / "sms-other" / "tasks.png").stat().st_size > 5000
    assert json.loads((tmp_path / "pages" / "sms-other" / "results.json").read_text()) == results.content
    assert json.loads((tmp_path / "pages" / "sms-other" / "bins.json").read_text()) == {"a": 1}
    with pytest.raises(ChatError, match="another version"):
        replace(STUDY, version=2).publish(tmp_path / "run", tmp_path / "pages", "sms")


def test_a_command_is_told_without_folders_and_times() -> None:
    words = ["--base", "/somewhere/smol.gguf", "--out", "/x/y z", "--minutes", "8", "--device", "cuda"]
    about = STUDY.about(words, ["numpy"])
    assert about["command"] == "python studies/sms.py --base smol.gguf --device cuda"
    assert about["versions"] == {"numpy": np.__version__}
    assert shown("python a.py --workers=4 --quick") == "python a.py --quick"
