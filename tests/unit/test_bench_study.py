"""What studies share beside their cells: numbers of options, and pages that may lack something."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from bench.cells import Results
from bench.comparison import Measure, Section
from bench.study import between, paragraphs
from core.errors import ChatError


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


@pytest.mark.parametrize("form", ["{:.2f}", "{:z.2f}", "{:+z.2f}"])
def test_a_gap_has_its_sign_whatever_the_figures_form(form: str) -> None:
    measure = Measure("share", "", {}, form)
    assert measure.gap([0.5, 0.5], [0.25, 0.25]) == "+0.25 (beyond the spread of the seeds)"
    assert measure.gap([0.5], [0.501]) == "+0.00 (one seed, so no spread to judge by)"
