"""What happens to a file that failed its checks."""

from __future__ import annotations

import json
from pathlib import Path

from convert.publish import publish
from convert.verify.check import Check
from convert.verify.report import Report


def test_a_failed_file_is_set_aside_and_an_older_good_one_stays(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    older = models / "run-Q4_K_M.gguf"
    older.write_text("good")
    fresh = tmp_path / "Q4_K_M.gguf"
    fresh.write_text("bad")
    report = Report("Q4_K_M", [Check("finite", "fail", "NaN in 1 of 2", "in a")], {})
    about = {"base": "b", "run": "run", "tested_on": "chats"}
    path = publish(fresh, "run-Q4_K_M", report, models, about, move=True)
    assert path.name == "run-Q4_K_M.unverified"
    assert path.read_text() == "bad"
    assert older.read_text() == "good"
    assert not fresh.exists()
    saved = json.loads((models / "run-Q4_K_M.unverified.json").read_text())
    assert saved["checks"][0]["verdict"] == "fail"
    assert {p.name for p in models.iterdir()} == {
        "run-Q4_K_M.gguf", "run-Q4_K_M.unverified", "run-Q4_K_M.unverified.json"
    }  # fmt: skip
