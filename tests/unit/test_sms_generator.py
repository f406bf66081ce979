"""The synthetic SMS: its columns, the same again by its seed, and messages that tell what it was made of."""

from __future__ import annotations

import csv
import re
import statistics
from dataclasses import fields
from pathlib import Path

import pytest

from train.tasks.make_sms import main
from train.tasks.sms_generator import Offer, Row, probability, rows


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["--out", str(tmp_path / f"{name}.csv"), "--rows", "40", "--seed", seed]) == 0
    a, b, c = ((tmp_path / f"{name}.csv").read_bytes() for name in "abc")
    assert a == b != c
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [column.name for column in fields(Row)]
    assert len(table) == 40
    assert len({row["campaign"] for row in table}) == 5
    assert not list(tmp_path.glob("*.partial"))


def test_its_card_says_in_its_first_lines_that_it_is_synthetic(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "sms.csv"), "--rows", "80"])
    card = (tmp_path / "sms.md").read_text()
    assert card.startswith("# Synthetic marketing SMS\n\nThis data is synthetic")
    assert "auc" in card
    assert "expected_log_loss" in card
    assert "| logistic regression, " in card
    assert re.search(r"\| the generator's truth \| 0\.\d{4} \| 1\.00 \|", card)
    main(["--out", str(tmp_path / "few.csv"), "--rows", "8"])  # one campaign, which can't be apart
    assert "campaigns apart" not in (tmp_path / "few.md").read_text()


def test_what_was_drawn_agrees_with_the_true_probabilities() -> None:
    table = list(rows(2000, 3))
    true = [row.probability for row in table]
    assert all(0 < p < 1 for p in true)
    assert statistics.stdev(true) > 0.1
    assert statistics.mean(row.converted for row in table) == pytest.approx(statistics.mean(true), abs=0.03)
    for row, p in zip(table, true, strict=True):
        assert row.conversions / row.sends == pytest.approx(p, abs=0.2)


def test_a_discount_sells_and_a_long_text_in_capitals_does_not() -> None:
    plain = probability(Offer(), "short", 0)
    assert probability(Offer(percent=30), "short", 0) > plain
    assert probability(Offer(bogo=True), "short", 0) > plain
    assert probability(Offer(capitals=True), "short", 0) < plain
    assert probability(Offer(), "long" * 50, 0) < plain


def test_messages_show_each_feature_of_the_function() -> None:
    texts = [row.message for row in rows(400, 0)]
    for part in ("% off", "$", "Free shipping", "Buy one, get one free", "midnight", "for you", "STOP"):
        assert any(part in text for text in texts), part
    assert any(text.isupper() for text in texts)


def test_a_file_that_is_there_and_a_wrong_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sms.csv"
    out.write_text("mine")
    assert main(["--out", str(out), "--rows", "8"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["--out", str(tmp_path / "sms.txt")]) == 1
    assert "'" + str(tmp_path / "sms.txt") + "'" in capsys.readouterr().err
