"""Two processes, started as accelerate starts them, train what one with twice the batch does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.commands import Command
from tests.integration.running_app import free_port
from tests.integration.small_runs import NF4, adapter_of, metrics_of, recipe_of, small_phi3, write_chats
from train.fine_tune import train_run
from train.folder import dump
from train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
SFT = {"max_steps": 6, "eval_steps": 3, "learning_rate": 1e-4, "gradient_accumulation_steps": 2}


def launch(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, as two processes."""
    # What `accelerate launch` runs for several GPUs; for CPUs it asks for MPI.
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = list(map(str, [*line, *words]))
    return subprocess.run(given, capture_output=True, text=True, cwd=ROOT, timeout=200)


def begin(*words: str | Path) -> list[Command]:
    """The run that shares its base out, as two processes with the variables that a launcher gives them."""
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    together |= {"MASTER_PORT": str(free_port())}
    begun = []
    for rank in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (together | {"RANK": rank, "LOCAL_RANK": rank}).items():
                patch.setenv(name, value)
            begun.append(Command("tests/integration/sharded_run.py", *words))
    return begun


def written(recipe: Recipe, folder: Path) -> Path:
    path = folder / f"{recipe.name}.yaml"
    path.write_text(dump(recipe))
    return path


def assert_same(together: Path, alone: Path) -> None:
    """The same files, adapters and curves, but for rounding."""
    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in alone.iterdir())
    adapter, other = adapter_of(together), adapter_of(alone)
    assert adapter.keys() == other.keys()
    for name, tensor in adapter.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=1e-6)
    keys = ("step", "loss", "eval_loss", "epoch", "lr")
    for ours, theirs in zip(metrics_of(together, *keys), metrics_of(alone, *keys), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    base, data = small_phi3(tmp_path / "base"), write_chats(tmp_path / "chats.jsonl")
    one = recipe_of(base, data, name="one", sft=SFT | {"per_device_train_batch_size": 2})
    alone = train_run(one, tmp_path / "outputs", False)

    two = written(recipe_of(base, data, name="two", sft=SFT), tmp_path)
    done = launch("train/qlora.py", two, "--root", tmp_path)
    stdout, stderr = done.stdout, done.stderr
    assert done.returncode == 0, stderr[-3000:]
    for phrase in ("parameters are trained", "rows to train on", "is done: see", "--try two"):
        assert stdout.count(phrase) == 1, stdout
    assert "destroy_process_group" not in stderr
    assert "deprecated" not in stderr

    assert_same(tmp_path / "outputs" / "two", alone)


def test_a_base_that_is_shared_out_trains_as_a_whole_one(tmp_path: Path) -> None:
    """Stopped in the middle and gone on with: in NF4, its head tied to the embeddings; and in 16 bit."""
    data = write_chats(tmp_path / "chats.jsonl")
    twice = {"per_device_train_batch_size": 2}
    of_tied: dict[str, Any] = {"sft": SFT | {"max_steps": 12}, "BitsAndBytesConfig": NF4}
    of_lean: dict[str, Any] = {"sft": SFT | {"gradient_checkpointing": "full", "max_steps": 3}}
    tied, lean = small_phi3(tmp_path / "tied", tie_word_embeddings=True), small_phi3(tmp_path / "lean")
    paths = []
    for base, sections in ((tied, of_tied), (lean, of_lean)):
        alone = sections | {"name": f"{base.name}-alone", "sft": sections["sft"] | twice}
        train_run(recipe_of(base, data, **alone), tmp_path / "outputs", False)
        shared = sections | {"name": base.name, "fully_shard": True}
        paths.append(written(recipe_of(base, data, **shared), tmp_path))

    first, second = begin(tmp_path, paths[0])
    metrics = tmp_path / "outputs" / "tied" / "metrics.jsonl"
    while not (metrics.is_file() and (4,) in metrics_of(metrics.parent, "step")):
        assert first.returncode is None, first.stderr[-3000:]
        time.sleep(0.002)
    first.send_signal(signal.SIGTERM)
    assert first.wait(200)
    assert second.wait(200)
    assert 4 <= metrics_of(metrics.parent, "step")[-1][0] < 12

    for path, more in zip(paths, (["--resume"], []), strict=True):
        first, second = begin(tmp_path, path, *more)
        assert first.wait(200) == 0, first.stderr[-3000:]
        assert second.wait(200) == 0, second.stderr[-3000:]
        assert f"{path.stem} keeps 0.5" in first.stdout, first.stdout
    for base in (tied, lean):
        assert_same(tmp_path / "outputs" / base.name, tmp_path / "outputs" / f"{base.name}-alone")
