"""A sweep of two values and two seeds in both arms, really trained on a small model in 4 bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.tiny_models import tiny
from train import sweep
from train.recipe import RECIPES

RECIPE = """
model: {{base_model: {base}, license: mit}}
data: {{path: quotes.jsonl, task: quotes, limit: 60}}
BitsAndBytesConfig: {{load_in_4bit: true}}
LoraConfig: {{r: 4, lora_alpha: 8}}
SFTConfig:
  max_length: 256
  per_device_train_batch_size: 1
  max_steps: 4
  eval_steps: 2
  learning_rate: {rate}
  gradient_checkpointing: none
  logging_steps: 1
waive: [first_loss]
"""
SWEEP = """
recipe: mine.yaml
grid: {LoraConfig.lora_alpha: [8, 32]}
seeds: [1, 2]
arms: [fixed, compensated]
allow_few_seeds: true
"""


def prepared(folder: Path, rate: str) -> list[str]:
    """Write base, data, recipe and sweep; return the command's arguments."""
    shutil.copy(RECIPES / "quotes.jsonl", folder)
    base = tiny("llama", folder / "base")
    (folder / "mine.yaml").write_text(RECIPE.format(base=base, rate=rate))
    (folder / "alpha.yaml").write_text(SWEEP)
    return [str(folder / "alpha.yaml"), "--root", str(folder)]


@pytest.mark.parametrize("text", ["{broken", "[1]", '{"runs": []}', '{"runs": {"a": 1}}', '{"rendered": 1}'])
def test_damaged_inputs_are_told_of(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = prepared(tmp_path, "1.0e-3")
    out = tmp_path / "outputs" / "alpha"
    out.mkdir(parents=True)
    (out / "inputs.json").write_text(text)
    assert sweep.main(arguments) == 1
    said = capsys.readouterr().err
    assert f"error: {out / 'inputs.json'} is damaged (" in said
    assert "Traceback" not in said
    assert said.endswith("bring back what it was, or move it away\n")


def test_a_sweep_is_trained_once_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = prepared(tmp_path, "1.0e-3")
    out = tmp_path / "outputs" / "alpha"
    assert sweep.main(arguments) == 0
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 6  # two runs of the arms are the same, alpha 8 being the recipe's own
    starts = {row["seed"]: set[float]() for row in rows}
    for row in rows:
        starts[row["seed"]].add(row["start_eval_loss"])
        assert row["best_eval_loss"] < row["start_eval_loss"]
        assert not row["diverged"]
        assert (out / row["config"] / "adapter" / "adapter_model.safetensors").is_file()
    assert {len(losses) for losses in starts.values()} == {1}  # the base is as it was for each run
    assert "± " in (out / "table.md").read_text()
    capsys.readouterr()
    assert sweep.main(arguments) == 0
    assert "1 of 8" not in capsys.readouterr().out

    # Again and alone, the last run gives the same figures: those before it left nothing in the base.
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    shutil.rmtree(out / rows[-1]["config"])
    assert sweep.main(arguments) == 0
    assert json.loads((out / "rows.jsonl").read_text().splitlines()[-1]) == rows[-1]

    # What is finished is that of other data, or of another base, as soon as these have other content.
    for path, kind in ((tmp_path / "quotes.jsonl", "data"), (tmp_path / "base/model.safetensors", "base")):
        before = path.read_bytes()
        path.write_bytes(before.replace(b" the ", b" a ") if kind == "data" else before[:-1] + b"\x3c")
        assert path.read_bytes() != before
        capsys.readouterr()
        assert sweep.main(arguments) == 1
        assert f"holds runs on other content of the {kind} ({tmp_path}" in capsys.readouterr().err
        path.write_bytes(before)
    assert sweep.main(arguments) == 0

    # Nor does a row count that was measured when nobody noted on what.
    noted = json.loads((out / "inputs.json").read_text())
    del noted["runs"][rows[0]["config"]]["base"]
    (out / "inputs.json").write_text(json.dumps(noted))
    assert sweep.main(arguments) == 1
    assert "holds runs without a record of their base" in capsys.readouterr().err
    (out / "inputs.json").unlink()
    assert sweep.main(arguments) == 1
    assert "holds runs without a record of their data and base" in capsys.readouterr().err


def test_a_run_that_breaks_is_a_row_and_not_the_end(tmp_path: Path) -> None:
    assert sweep.main(prepared(tmp_path, "1.0e+38")) == 0
    out = tmp_path / "outputs" / "alpha"
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert any(row["diverged"] for row in rows)
    assert "2 of 2" in (out / "table.md").read_text()
