"""What happens to a file that failed its checks, and to one for which there is no room."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from convert.publish import models_folder, publish
from convert.verify.limits import Check
from convert.verify.report import Report
from core.errors import ConvertError
from tests.unit.test_gguf_file import MODEL, gguf


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


def test_a_disk_without_room_is_named_and_keeps_no_leftovers(tmp_path: Path, another_disk: Path) -> None:
    """No file may get larger than 64 kB: a disk that is full, as far as a program can tell."""
    (tmp_path / "models").symlink_to(another_disk)
    models = models_folder(tmp_path)
    for name in ("run-Q4_K_M.gguf", "run-Q4_K_M.quality.json"):
        (models / name).write_text("older")
    made = tmp_path / "Q4_K_M.gguf"
    made.write_bytes(gguf(MODEL) + bytes(100_000))
    report = Report("Q4_K_M", [Check("finite", "ok", "all")], {})
    about = {"base": "b", "run": "run", "tested_on": "chats"}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, before[1]))
    try:
        with pytest.raises(ConvertError) as caught:
            publish(made, "run-Q4_K_M", report, models, about, move=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"can't write {models / 'run-Q4_K_M.gguf'} (" in str(caught.value)
    assert f"{another_disk.resolve()} has " in str(caught.value)
    assert {path.name: path.read_text() for path in models.iterdir()} == {
        "run-Q4_K_M.gguf": "older", "run-Q4_K_M.quality.json": "older"
    }  # fmt: skip
    publish(made, "run-Q4_K_M", report, models, about, move=True)
    assert not made.exists()
    made_names = {path.name.removeprefix("run-Q4_K_M") for path in models.iterdir()}
    assert made_names == {".gguf", ".quality.json", ".md", ".Modelfile"}
    assert json.loads((models / "run-Q4_K_M.quality.json").read_text())["run"] == "run"


def test_a_models_folder_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(tmp_path / "not mounted")
    with pytest.raises(ConvertError, match=r"a link to .*not mounted, which isn't there"):
        models_folder(tmp_path)
