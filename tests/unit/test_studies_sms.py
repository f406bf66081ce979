"""The study of marketing messages: its split, its figures beside scikit-learn's, its report from its JSON."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from chat.sms_page import Calibration
from core.sms_rules import extract
from studies.sms_arms import Plan, baselines_of, scores, split
from studies.sms_plots import write_report
from studies.sms_report import arms, best_rate, calibration, extractors, markdown
from train.tasks.make_sms import rows as made
from train.tasks.sms_gold import gold

DOCS = Path(__file__).resolve().parents[2] / "docs" / "studies"
CONTENT: dict[str, Any] = json.loads((DOCS / "sms" / "results.json").read_text())
# The chat's model is asked the same as the tuned ones: for these tests, as if it had answered as one of them.
CHAT = {"chat/1": CONTENT["cells"]["tuned/16 bit/1"]}
ASKED: dict[str, Any] = CONTENT | {"cells": CONTENT["cells"] | CHAT}


def test_a_campaign_and_a_text_are_on_one_side_only_and_another_seed_splits_otherwise() -> None:
    rows = list(made(400, 0))
    train, tests = split(rows, 1)
    assert train
    assert tests
    assert not {rows[i].campaign for i in train} & {rows[i].campaign for i in tests}
    assert not {rows[i].message for i in train} & {rows[i].message for i in tests}
    assert split(rows, 1) == (train, tests)
    assert split(rows, 2)[1] != tests


def test_a_rate_is_chosen_by_campaigns_that_are_neither_trained_on_nor_tested() -> None:
    plan, rows = Plan("r", 200, 60, 1, 1, (1e-4, 1e-3), 0, rows=800), list(made(800, 0))
    train, tests = plan.sides(rows, 1)
    looked_at = plan.sides(rows, 1, looking=True)
    assert [len(part) for part in (train, tests, *looked_at)] == [200, 60, 200, 60]
    parts = [{rows[i].campaign for i in part} for part in (tests, *looked_at)]
    assert all(not parts[one] & parts[other] for one, other in ((0, 1), (0, 2), (1, 2)))
    content = {"settings": {"rates": [0.1]}, "cells": {}}
    assert best_rate(content) == 0.1
    content["cells"] = {f"rate/{rate}": {"log_loss": loss} for rate, loss in ((1e-4, 0.6), (2e-5, 0.5))}
    assert best_rate(content) == 2e-5


def test_what_a_seed_cost_is_told_of_the_one_that_ran_alone() -> None:
    content = copy.deepcopy(CONTENT)
    tuned = content["cells"]["tuned/16 bit/1"]
    for seed, memory in ((1, 2.0), (2, 9.0), (3, 9.5)):
        content["cells"][f"tuned/16 bit/{seed}"] = tuned | {"memory_gb": memory}
    found = arms(content)["LoRA, 16 bit"]
    assert len(found["reached"]) == 3
    assert found["memory_gb"] == [2.0]
    assert "LoRA, 16 bit reaches" in markdown(content)


def test_with_many_rows_every_baseline_finds_some_of_the_truth() -> None:
    rows = list(made(2000, 0))
    train, tests = ([rows[i] for i in part] for part in split(rows, 1))
    found = {name: scores(tests, likely) for name, likely in baselines_of(train, tests).items()}
    mean = found.pop("mean rate")["expected_log_loss"]
    assert set(found) == {"logistic regression", "gradient boosting", "TF-IDF"}
    truth = scores(tests, [row.probability for row in tests])["expected_log_loss"]
    assert all(truth < figures["expected_log_loss"] < mean for figures in found.values())
    alike = [row for row in train if row.converted][:8]
    assert set(baselines_of(alike, tests)) == {"mean rate"}


def test_a_reply_that_fills_no_schema_is_counted_and_costs_recall() -> None:
    content = copy.deepcopy(CONTENT)
    content["cells"] = {key: cell for key, cell in content["cells"].items() if not key.startswith("asked/")}
    truth, rules = content["cells"]["rules"]["truth"], content["cells"]["rules"]
    for number in range(20):
        content["cells"][f"asked/{number}"] = {"features": truth[number], "fault": "", "seconds": 2.0}
    whole = extractors(content)
    assert whole["model"]["unfilled"] == whole["hybrid"]["unfilled"] == 0
    assert all(recall in (1, None) for _, recall in whole["model"]["fields"].values())
    doubtful = next(number for number in range(20) if rules["unsure"][number] and truth[number]["deadline"])
    content["cells"][f"asked/{doubtful}"] = {"features": None, "fault": "cut", "seconds": 2.0}
    broken = extractors(content)
    assert broken["model"]["unfilled"] == broken["hybrid"]["unfilled"] == 1
    assert broken["model"]["fields"]["deadline"][1] < 1
    asked = sum(map(bool, rules["unsure"][:20]))
    assert whole["hybrid"]["asked"] == asked
    assert whole["hybrid"]["seconds"] == pytest.approx(2.0 * asked / 20 + rules["seconds"])


def test_a_report_that_is_made_again_of_its_json_is_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(json.loads(json.dumps(ASKED)), tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["calibration.json", "calibration.png", "features.png", "reached.png", "report.md"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    Calibration.model_validate_json((tmp_path / "a" / "calibration.json").read_bytes())  # what /sms reads


def test_the_page_says_what_its_json_says() -> None:
    page = (DOCS / "sms.md").read_text()
    assert page == markdown(CONTENT, "sms/")
    assert page.count("synthetic") >= 2
    rules = CONTENT["cells"]["rules"]
    messages = gold(len(rules["truth"]), 0)
    assert rules["truth"] == [truth.model_dump() for _, truth in messages]
    assert rules["found"] == [extract(text)[0].model_dump() for text, _ in messages]


def test_the_truth_reaches_all_and_the_mean_rate_nothing() -> None:
    found = arms(CONTENT)
    assert found["the generator's truth"]["reached"] == pytest.approx([1, 1, 1])
    rows = max(int(name.split()[-2]) for name in found if name.startswith("mean rate"))
    assert found[f"mean rate, {rows} rows"]["reached"] == pytest.approx([0, 0, 0])
    assert calibration(ASKED)["model"] == CONTENT["cells"]["chat_made"]["model"]


def test_the_answer_compares_the_tuned_with_the_best_baseline_of_as_many_rows() -> None:
    content = copy.deepcopy(CONTENT)
    assert "do not overlap." in markdown(content)
    for key, cell in content["cells"].items():
        if key.startswith("tuned/"):
            best = content["cells"][f"baselines/{key[-1]}"]["logistic regression, 1500 rows"]
            cell["expected_log_loss"] = best["expected_log_loss"]
    text = markdown(content)
    assert re.search(r"tuned models find (0\.\d\d) to \1 \((\S+ to \S+) over .*regression, \1 \(\2\);", text)
    assert "these ranges overlap. The untuned model finds -1." in text
    for kind in ("chat/", "tuned/"):
        kept = {key: cell for key, cell in content["cells"].items() if not key.startswith(kind)}
        text = markdown(content | {"cells": kept})
        assert "untuned model finds" not in text
        assert ("In short" in text) is (kind == "chat/")


def test_the_page_shows_a_command_without_somebodys_folder_and_time() -> None:
    content = copy.deepcopy(CONTENT)
    made = content["cells"]["made"]
    made["command"] = "python studies/sms.py --out 'my folder' --epochs 3 --minutes=2 --workers 4 --batch 8"
    assert "by `python studies/sms.py --epochs 3 --batch 8`, on" in markdown(content)


def test_sentences_have_no_negative_zero_and_leave_checkpointing_out() -> None:
    text = markdown(CONTENT)
    said = [line for line in text.splitlines() if line.startswith("- LoRA, 16 bit")]
    assert said
    assert not any("checkpointing" in line for line in said)
    assert "-0.00" not in text
