"""Two processes, started as accelerate starts them, train what one with twice the batch does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.small_runs import adapter_of, metrics_of, recipe_of, small_phi3, write_chats
from train.fine_tune import train_run
from train.folder import dump

ROOT = Path(__file__).resolve().parents[2]
SFT = {"max_steps": 6, "eval_steps": 3, "learning_rate": 1e-4, "gradient_accumulation_steps": 2}


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    base, data = small_phi3(tmp_path / "base"), write_chats(tmp_path / "chats.jsonl")
    one = recipe_of(base, data, name="one", sft=SFT | {"per_device_train_batch_size": 2})
    alone = train_run(one, tmp_path / "outputs", False)

    (tmp_path / "two.yaml").write_text(dump(recipe_of(base, data, name="two", sft=SFT)))
    # What `accelerate launch` runs for several GPUs; for CPUs it asks for MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, ROOT / "train" / "qlora.py", tmp_path / "two.yaml", "--root", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    together = tmp_path / "outputs" / "two"
    for phrase in ("parameters are trained", "rows to train on", "is done: see", "--try two"):
        assert done.stdout.count(phrase) == 1, done.stdout
    assert "destroy_process_group" not in done.stderr

    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in alone.iterdir())
    adapter = adapter_of(alone)
    for name, tensor in adapter_of(together).items():
        torch.testing.assert_close(tensor, adapter[name], rtol=0, atol=1e-6)
    keys = ("step", "eval_loss", "epoch", "lr")
    for ours, theirs in zip(metrics_of(together, *keys), metrics_of(alone, *keys), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
