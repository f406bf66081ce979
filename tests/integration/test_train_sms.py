"""A whole run of the task sms: what its folder says of likelihoods, and beside what."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from PIL import Image

from core.from_gguf import checkpoint_from_gguf
from core.sms import BASELINES, FIGURES
from train import qlora
from train.tasks.make_sms import main as make_csv


def test_a_run_says_its_likelihoods_beside_the_baselines_and_draws_how_they_came_true(
    short_model: Path, tmp_path: Path
) -> None:
    checkpoint_from_gguf(short_model, tmp_path / "base")
    assert make_csv(["--out", str(tmp_path / "sms.csv"), "--rows", "240"]) == 0
    content = {
        "model": {"base_model": str(tmp_path / "base"), "license": "apache-2.0"},
        "data": {"path": str(tmp_path / "sms.csv"), "task": "sms", "license": "synthetic"},
        "LoraConfig": {"r": 4},
        "SFTConfig": {"max_length": 256, "max_steps": 2},
        "waive": ["first_loss"],
    }
    (tmp_path / "sms.yaml").write_text(yaml.safe_dump(content))
    assert qlora.main([str(tmp_path / "sms.yaml"), "--root", str(tmp_path)]) == 0
    folder = tmp_path / "outputs" / "sms"
    scores = json.loads((folder / "manifest.json").read_text())["scores"]
    assert {f"{name}_{figure}" for name in BASELINES for figure in FIGURES} <= set(scores["after"])
    assert scores["after"]["mean_rate_share_of_truth_reached"] == 0
    assert scores["after"]["share_of_truth_reached"] < 1
    text = (folder / "README.md").read_text()
    beside = text.partition("## Beside what needs no language model\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in beside.strip().splitlines()[2:]]
    assert rows == ["this model before", "this model after", *BASELINES.values()]
    assert f"{scores['after']['tfidf_auc']:.4f}" in beside
    assert "![What was said and what happened](calibration.png)" in text
    with Image.open(folder / "calibration.png") as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000) or []) > 10
