"""Two processes, started as accelerate starts them, train what one with twice the batch does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integration.commands import Command
from tests.integration.running_app import free_port
from tests.integration.small_runs import adapter_of, metrics_of, recipe_of, small_phi3, write_chats
from train.fine_tune import train_run
from train.folder import dump

SFT = {"max_steps": 6, "eval_steps": 3, "learning_rate": 1e-4, "gradient_accumulation_steps": 2}


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data = small_phi3(tmp_path / "base"), write_chats(tmp_path / "chats.jsonl")
    one = recipe_of(base, data, name="one", sft=SFT | {"per_device_train_batch_size": 2})
    alone = train_run(one, tmp_path / "outputs", False)

    (tmp_path / "two.yaml").write_text(dump(recipe_of(base, data, name="two", sft=SFT)))
    # What `accelerate launch` and torchrun tell the processes that they start.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    started = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        started.append(Command("train/qlora.py", tmp_path / "two.yaml", "--root", tmp_path))
    for process in started:
        assert process.wait(200) == 0, process.stderr[-3000:]
    together = tmp_path / "outputs" / "two"
    for phrase in ("parameters are trained", "rows to train on", "is done: see", "--try two"):
        assert sum(process.stdout.count(phrase) for process in started) == 1, phrase
    assert not any("destroy_process_group" in process.stderr for process in started)

    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in alone.iterdir())
    adapter = adapter_of(alone)
    for name, tensor in adapter_of(together).items():
        torch.testing.assert_close(tensor, adapter[name], rtol=0, atol=1e-6)
    keys = ("step", "eval_loss", "epoch", "lr")
    for ours, theirs in zip(metrics_of(together, *keys), metrics_of(alone, *keys), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
