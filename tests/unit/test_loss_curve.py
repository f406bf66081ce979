"""The picture of a run's loss, and the samples that are read back from their table."""

from __future__ import annotations

import tempfile
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from chat.loss_curve import Curve, Point, loss_svg, ticks
from chat.run_files import read_samples
from train.report import write_samples

texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
)


@given(texts, texts, texts)
def test_samples_come_back_as_the_model_wrote_them(prompt: str, before: str, after: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "samples.md")
        write_samples(path, [[{"role": "user", "content": prompt}]], [before], [after])
        (sample,) = read_samples(path.read_text())

    def plain(text: str) -> str:  # what a table keeps of blanks
        return text.strip("\n").replace("\t", "    ")

    read = (sample.prompt, sample.before, sample.after)
    written = (prompt, before or "(empty)", after or "(empty)")
    assert [plain(text) for text in read] == [plain(text) for text in written]


points = st.lists(st.tuples(st.integers(0, 10**9), st.floats(-1e6, 1e6)), min_size=1, max_size=30)


@given(points, points)
def test_any_curve_is_a_picture_within_its_frame(one: list[Point], other: list[Point]) -> None:
    svg = ElementTree.fromstring(loss_svg(Curve(one, other), "nats a token", 1))
    assert [child.tag for child in svg][:2] == ["title", "desc"]
    places = [pair.split(",") for line in svg.iter("polyline") for pair in line.get("points", "").split()]
    assert all(60 <= float(x) <= 640 and 0 <= float(y) <= 280 for x, y in places)
    assert 1 <= len([text for text in svg.iter("text") if text.get("text-anchor") == "end"]) <= 20


def test_ticks_are_round() -> None:
    assert ticks(0, 54) == [0, 10, 20, 30, 40, 50]
    assert [round(tick, 9) for tick in ticks(2.1, 3.8)] == [2.5, 3.0, 3.5]
