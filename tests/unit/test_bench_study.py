"""What studies share beside their cells: numbers of options, and pages that may lack something."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Mapping
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bench.cells import FILE, Results, claimed, read_results
from bench.comparison import Measure, Section
from bench.study import Content, Study, between, paragraphs
from core.errors import ChatError


def tea(content: Content, pictures: Mapping[str, str]) -> str:
    """A page."""
    return f"{content['cells']['leaf']['grams']:.1f} g {pictures}\n"


STUDY = Study("tea", 2, tea, lambda _: {"cup": Figure()}, lambda _: {"leaf.json": {"a": 1}})


def texts(folder: Path) -> dict[str, bytes]:
    """What is in a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_docs_stay_whole_where_a_page_cannot_be_made(tmp_path: Path) -> None:
    run, pages = tmp_path / "run", tmp_path / "pages"
    results = STUDY.results(run, {})
    results.put("leaf", {"grams": 2})
    assert STUDY.publish(run, pages) == 0
    before = texts(pages)
    names = ("tea.md", "tea/cup.png", "tea/leaf.json", f"tea/{FILE}")
    assert set(before) == {str(pages / name) for name in names}
    assert (pages / "tea.md").read_text() == "2.0 g {'cup': 'tea/cup.png'}\n"
    for cell in ({}, None, {"grams": "2"}, [], {"grams": None}):
        results.put("leaf", cell)
        with pytest.raises(
            ChatError, match=rf"{run / FILE} is damaged: .*\. Give another folder: --page FOL"
        ):
            STUDY.publish(run, pages)
        with pytest.raises(ChatError, match=rf"{run / FILE} is damaged: .*\. Move it away, or give another "):
            STUDY.read(run)
        assert texts(pages) == before


def test_a_page_is_made_again_under_its_own_name(tmp_path: Path) -> None:
    STUDY.results(tmp_path / "green", {}).put("leaf", {"grams": 2})
    STUDY.publish(tmp_path / "green", tmp_path)
    assert (tmp_path / "green.md").exists()
    assert not (tmp_path / "tea.md").exists()
    STUDY.publish(tmp_path / "green", tmp_path, "black")
    assert read_results(tmp_path / "black", 2)["study"] == "tea"


def test_results_of_another_study_are_refused_and_old_ones_are_gone_on_with(tmp_path: Path) -> None:
    STUDY.results(tmp_path, {}).put("leaf", {"grams": 2})
    for study in ("coffee", None):
        changed = json.loads((tmp_path / FILE).read_text()) | {"study": study}
        (tmp_path / FILE).write_text(json.dumps(changed))
        for use in (STUDY.read, lambda folder: STUDY.publish(folder, tmp_path / "pages")):
            with pytest.raises(
                ChatError, match=rf"another study \({study!r}, and this is 'tea'\)\. (Give|Move)"
            ):
                use(tmp_path)
        with pytest.raises(ChatError, match="another study"):
            STUDY.results(tmp_path, {})
    del changed["study"]
    (tmp_path / FILE).write_text(json.dumps(changed))
    assert STUDY.results(tmp_path, {}).content == changed | {"study": "tea"}
    assert STUDY.publish(tmp_path, tmp_path / "pages") == 0


@pytest.mark.parametrize(("content", "said"), [("", "there is no "), ("{broken", "can't read ")])
def test_what_cannot_be_read_comes_with_what_to_do(tmp_path: Path, content: str, said: str) -> None:
    if content:
        (tmp_path / FILE).write_text(content)
    for option, cure in (("--page", "Give another"), ("--out", "Move it away, or give another")):
        with pytest.raises(ChatError, match=rf"^{said}{tmp_path / FILE}.*\. {cure} folder: {option} FOLDER$"):
            STUDY.read(tmp_path, option)


def test_a_folder_is_one_processs(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "out"),
        pytest.raises(
            ChatError, match=r"another process measures in .*out right now\. Wait, or give another"
        ),
        claimed(tmp_path / "out"),
    ):
        pass
    with claimed(tmp_path / "out"):  # it is free again
        (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(ChatError, match=r"is no folder: a file is there\. Give another one: --out"),
            claimed(folder),
        ):
            pass


@pytest.mark.parametrize(
    ("option", "said"),
    [
        *(
            (["--name", name], "can't be a file's")
            for name in ("", ".", "..", "a/b", "a\\b", "a\0b", "/", "a\n")
        ),
        (["--minutes", "nan"], "nan is not from 0 to inf"),
        (["--minutes", "-1"], "-1 is not from 0 to inf"),
        (["--workers", "0"], "0 is not from 1 to 32"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    option: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        STUDY.parser("Tea?").parse_args(option)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    right = STUDY.parser("Tea?").parse_args(["--minutes", "0.5", "--workers", "32", "--name", "green tea"])
    assert (right.minutes, right.workers, right.name) == (0.5, 32, "green tea")


def test_a_number_is_within_its_ends_or_said_to_be_wrong() -> None:
    assert between(8, 1500)("8") == 8
    assert between(0, 1, float)("1") == 1.0
    for text, said in (("7", "7 is not from 8 to 1,500"), ("1501", "1501 is not"), ("x", "'x' is no number")):
        with pytest.raises(ArgumentTypeError, match=said):
            between(8, 1500)(text)
    with pytest.raises(ArgumentTypeError, match="nan is not from 0 to 1"):
        between(0, 1, float)("nan")


def test_a_paragraph_of_what_is_not_there_yet_is_left_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Tea\n\nOn $date.\n\n$rows rows of ${kinds}.\n\n$table\n\n![Tea](${tea_plot})\n")
    sections = {"table": Section([])}
    assert paragraphs(page, {"date": "", "rows": 0, "kinds": "tea"}, sections) == (
        "# Tea\n\n0 rows of tea.\n\nNot measured yet.\n"
    )
    whole = paragraphs(page, {"date": "Monday", "rows": 2, "kinds": "t", "tea_plot": "t.png"}, sections)
    assert whole == "# Tea\n\nOn Monday.\n\n2 rows of t.\n\nNot measured yet.\n\n![Tea](t.png)\n"


def test_who_goes_on_has_the_same_device(tmp_path: Path) -> None:
    results = Results(tmp_path, 1, {})
    results.begin("made", {"device": "a b", "date": "1"}, "device", "Use {}")
    Results(tmp_path, 1, {}).begin("made", {"device": "a b", "date": "2"}, "device", "Use {}")
    assert Results(tmp_path, 1, {}).content["cells"]["made"]["date"] == "1"
    with pytest.raises(ChatError, match=r"the device a b, and this is c: .*\. Use 'a b', or give another"):
        Results(tmp_path, 1, {}).begin("made", {"device": "c"}, "device", "Use {}")
    for damaged in ({}, None, "a b", {"device": 1}):
        results.put("made", damaged)
        with pytest.raises(ChatError, match=r"is damaged: .*Move it away"):
            results.begin("made", {"device": "c"}, "device", "Use {}")


@pytest.mark.parametrize("form", ["{:.2f}", "{:z.2f}", "{:+z.2f}"])
def test_a_gap_has_its_sign_whatever_the_figures_form(form: str) -> None:
    measure = Measure("share", "", {}, form)
    assert measure.gap([0.5, 0.5], [0.25, 0.25]) == "+0.25 (beyond the spread of the seeds)"
    assert measure.gap([0.5], [0.501]) == "+0.00 (one seed, so no spread to judge by)"
