"""The study of marketing messages: its split, its figures beside scikit-learn's, its report from its JSON."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import likelihoods, messages
from bench.cells import FILE
from chat.sms_page import Calibration
from core.errors import ChatError
from core.sms_rules import extract
from studies.sms import ARMS, STUDY, Plan, baselines
from studies.sms_page import PAGE, best_rate, calibration_json, page, runs
from train.tasks.sms_generator import rows as generated
from train.tasks.sms_gold import gold
from train.tasks.sms_truth import of_baselines, scores, share_reached, split

DOCS = Path(__file__).resolve().parents[2] / "docs" / "studies"
CONTENT: dict[str, Any] = json.loads((DOCS / "sms" / "results.json").read_text())
# The chat's model is asked the same as the tuned ones: for these tests, as if it had answered as one of them.
CHAT = {"chat/1": CONTENT["cells"]["tuned/16 bit/1"]}
ASKED: dict[str, Any] = CONTENT | {"cells": CONTENT["cells"] | CHAT}
PICTURES = {name: f"sms/{name}.png" for name in ("features", "reached", "calibration")}


def markdown(content: dict[str, Any]) -> str:
    return page(content, PICTURES)


def test_a_campaign_and_a_text_are_on_one_side_only_and_another_seed_splits_otherwise() -> None:
    rows = list(generated(400, 0))
    train, tests = split(rows, 1)
    assert train
    assert tests
    for name in ("campaign", "message"):
        assert not {getattr(row, name) for row in train} & {getattr(row, name) for row in tests}
    assert split(rows, 1) == (train, tests)
    assert split(rows, 2)[1] != tests


def test_a_rate_is_chosen_by_campaigns_that_are_neither_trained_on_nor_tested() -> None:
    plan = Plan("r", 200, 60, 1, 1, [1e-4, 1e-3], 0, rows=800)
    train, tests = plan.sides(1)
    looked_at = plan.sides(1, looking=True)
    assert [len(part) for part in (train, tests, *looked_at)] == [200, 60, 200, 60]
    parts = [{row.campaign for row in part} for part in (tests, *looked_at)]
    assert all(not parts[one] & parts[other] for one, other in ((0, 1), (0, 2), (1, 2)))
    content: dict[str, Any] = {"settings": {"rates": [0.1]}, "cells": {}}
    assert best_rate(content) == 0.1
    content["cells"] = {f"rate/{rate}": {"log_loss": loss} for rate, loss in ((1e-4, 0.6), (2e-5, 0.5))}
    assert best_rate(content) == 2e-5


def test_the_page_says_that_the_best_rate_is_at_an_end_of_those_that_were_tried() -> None:
    content = copy.deepcopy(CONTENT)
    tried = {2e-4: 0.6, 5e-4: 0.5, 1e-3: 0.7}
    assert "tuned models is the highest that was tried" in markdown(content)
    for best, said in ((2e-4, "lowest"), (5e-4, ""), (1e-3, "highest")):
        losses = tried | {best: 0.4}
        assert likelihoods.edge(losses) == said
        content["cells"] |= {f"rate/{rate:g}": {"log_loss": loss} for rate, loss in losses.items()}
        assert (f"is the {said} that was tried" in markdown(content)) is bool(said)
        assert ("that was tried" in markdown(content)) is bool(said)
    assert likelihoods.edge({1e-3: 0.5}) == likelihoods.edge({}) == ""  # nothing to choose from


def test_baselines_and_rules_are_what_they_were_when_the_committed_results_were_made() -> None:
    plan = Plan(**CONTENT["settings"])
    made, before = baselines(plan, 1), CONTENT["cells"]["baselines/1"]
    assert list(made) == list(before)
    for name, figures in before.items():
        assert made[name] == pytest.approx(figures, abs=1e-6), name
    tuned = CONTENT["cells"]["tuned/16 bit/1"]
    assert tuned["converted"] == [row.converted for row in plan.sides(1)[1]]  # the same rows, in this order
    assert scores(plan.sides(1)[1], tuned["likely"])["auc"] == pytest.approx(tuned["auc"])


def test_what_a_seed_cost_is_told_of_the_one_that_ran_alone() -> None:
    content = copy.deepcopy(CONTENT)
    tuned = content["cells"]["tuned/16 bit/1"]
    for seed, memory in ((1, 2.0), (2, 9.0), (3, 9.5)):
        content["cells"][f"tuned/16 bit/{seed}"] = tuned | {"memory_gb": memory}
    found = {measure.name: measure.rows[""] for measure in likelihoods.measures(runs(content))}
    assert len(found["reached"]["LoRA, 16 bit"]) == 3
    assert found["memory, GB"]["LoRA, 16 bit"] == [2.0]
    assert "TF-IDF, 1500 rows" not in found["memory, GB"]
    assert "reaches -0.47" not in markdown(content)


def test_with_many_rows_every_baseline_finds_some_of_the_truth() -> None:
    train, tests = split(list(generated(2000, 0)), 1)
    found = of_baselines(tests, train)
    shares = {name.partition(",")[0]: share_reached(figures, found) for name, figures in found.items()}
    assert shares.pop("mean rate") == 0
    assert shares.pop("the generator's truth") == 1
    assert set(shares) == {"logistic regression", "gradient boosting", "TF-IDF"}
    assert all(share is not None and 0 < share < 1 for share in shares.values())
    alike = [row for row in train if row.converted][:8]
    assert set(of_baselines(tests, alike)) == {"mean rate, 8 rows", "the generator's truth"}
    assert share_reached(found["the generator's truth"], of_baselines(tests)) is None  # beside no rate


def test_a_reply_that_fills_no_schema_is_counted_in_the_page() -> None:
    rules = CONTENT["cells"]["rules"]
    replies = {
        number: {"features": rules["truth"][number], "fault": "", "seconds": 2.0} for number in range(20)
    }
    doubtful = next(number for number in range(20) if rules["unsure"][number])
    replies[doubtful] = {"features": None, "fault": "cut", "seconds": 2.0}
    found = messages.extractors(rules, replies)
    assert list(found) == ["rules, all messages", "rules", "model", "hybrid"]
    assert [each.unfilled for each in found.values()] == [0, 0, 1, 1]
    assert [each.messages for each in found.values()] == [200, 20, 20, 20]
    text = messages.section(found).text
    assert "| schema not filled |  | 0 | 0 | 1 | 1 |" in text
    alone = messages.section(messages.extractors(rules, {}))
    assert "hybrid" not in alone.text
    assert alone.drawn
    assert messages.section({}).text == "Not measured yet."
    assert not messages.section({}).drawn


def test_a_report_that_is_made_again_of_its_json_is_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        STUDY.write(json.loads(json.dumps(ASKED)), tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["calibration.json", "calibration.png", "features.png", "reached.png", "report.md"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    Calibration.model_validate_json((tmp_path / "a" / "calibration.json").read_bytes())  # what /sms reads


def test_a_report_of_nothing_says_so_and_draws_nothing(tmp_path: Path) -> None:
    content = {"settings": CONTENT["settings"], "cells": {}}
    STUDY.write(content, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    text = (tmp_path / "report.md").read_text()
    assert text.count("Not measured yet.") == 3
    assert "![" not in text
    assert "synthetic" in text
    assert "In short" not in text


def test_the_page_says_what_its_json_says() -> None:
    text = (DOCS / "sms.md").read_text()
    assert text == markdown(CONTENT)
    assert text.count("synthetic") >= 2
    whole = PAGE.read_text()
    assert len(re.findall(r"^(?=\S)", whole, re.M)) <= len(re.findall(r"^(?=\S)", text, re.M))
    for paragraph in whole.split("\n\n"):  # none was left out, by a name that is written wrong
        begins = paragraph.partition("$")[0].strip()
        assert begins in text
    rules = CONTENT["cells"]["rules"]
    found = gold(len(rules["truth"]), 0)
    assert rules["truth"] == [truth.model_dump() for _, truth in found]
    assert rules["found"] == [extract(message)[0].model_dump() for message, _ in found]


def test_the_arms_are_those_of_the_committed_results() -> None:
    assert {key.split("/")[1] for key in CONTENT["cells"] if key.startswith("tuned/")} == set(ARMS)


@pytest.mark.parametrize(
    ("key", "cell"),
    [
        *(("tuned/16 bit/1", cell) for cell in (None, {}, [], {"log_loss": "0.5"})),
        *((key, {"seconds": 1, "features": None}) for key in ("asked/x", "asked/9999")),
        ("tuned/16 bit/x", CONTENT["cells"]["tuned/16 bit/1"]),
        ("baselines/1", None),
        ("made", "a machine"),
        ("rules", "x"),
        ("rate/1", {}),
        ("rate/x", {"log_loss": 1}),
        ("full/16 bit", {"memory_gb": 1}),
        ("chat/1", CONTENT["cells"]["tuned/16 bit/1"]),  # and no model that said so
    ],
)
def test_a_damaged_cell_is_told_of_in_a_line(key: str, cell: Any, tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    if key == "chat/1":
        content["cells"].pop("chat_made", None)
    content["cells"][key] = cell
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(
        ChatError, match=r"results\.json is damaged: .*\. Give another folder: --page"
    ) as told:
        STUDY.publish(tmp_path, tmp_path / "pages")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "pages").exists()


@pytest.mark.parametrize("kinds", [("baselines",), ("baselines", "rules", "tuned"), ("chat", "asked")])
def test_what_there_was_no_time_for_is_left_out(kinds: tuple[str, ...]) -> None:
    content = copy.deepcopy(CONTENT)
    content["cells"] = {k: v for k, v in content["cells"].items() if k.partition("/")[0] not in kinds}
    made = STUDY.made(content)
    assert "reached.png" in made
    assert ("In short" in str(made["report.md"])) is ("baselines" not in kinds)


def test_the_truth_reaches_all_and_the_mean_rate_nothing() -> None:
    found = {arm: [run["reached"] for run in of] for arm, of in runs(CONTENT).items()}
    assert found["the generator's truth"] == pytest.approx([1, 1, 1])
    rows = max(int(name.split()[-2]) for name in found if name.startswith("mean rate"))
    assert found[f"mean rate, {rows} rows"] == pytest.approx([0, 0, 0])
    told = calibration_json(ASKED)["calibration.json"]
    assert told["model"] == CONTENT["cells"]["chat_made"]["model"]
    kept = {key: cell for key, cell in ASKED["cells"].items() if not key.startswith("chat/")}
    assert calibration_json(ASKED | {"cells": kept}) == {}


def test_the_answer_compares_the_tuned_with_the_best_baseline_of_as_many_rows() -> None:
    content = copy.deepcopy(CONTENT)
    assert "do not overlap." in markdown(content)
    for key, cell in content["cells"].items():
        if key.startswith("tuned/"):
            best = content["cells"][f"baselines/{key[-1]}"]["logistic regression, 1500 rows"]
            cell["expected_log_loss"] = best["expected_log_loss"]
    text = markdown(content)
    said = " ".join(text.split())
    assert re.search(r"tuned models find (0\.\d\d) to \1 \((\S+ to \S+) over .*regression, \1 \(\2\);", said)
    assert "these ranges overlap.** **The untuned model finds -1." in said
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
    said = [line for line in text.splitlines() if line.endswith(" against LoRA, 16 bit.")]
    assert len(said) == 11
    assert all("the spread of the seeds" in line for line in said)
    assert not any("truth" in line for line in said)
    assert not any("checkpointing" in line for line in said)
    assert "-0.00" not in text
