"""A run in FP8 ends in 16 bit: from its step on, with FP8's memory free, and resumed as if never stopped."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.fused_models import CPU, NF4, adapted, recipe_of, rows
from tests.integration.small_runs import adapter_of
from train.batches import Order
from train.evaluation import evaluate
from train.fused.decoder import Stack
from train.fused.fuse import fuse, fused
from train.sft import SFTTrainer

STEPS, FP8_STEPS = 20, 14
ROWS = rows((20,) * 24)
SFT = {"max_steps": STEPS, "eval_steps": 10, "logging_steps": 1, "learning_rate": 1e-3, "max_length": 40}
RECIPE = recipe_of(NF4, {**SFT, "per_device_train_batch_size": 1})
FP8_RECIPE = RECIPE.model_copy(update={"precision": "fp8"})
Line = dict[str, Any]


def trainer_of(folder: Path, fast: bool, fp8: bool, report: Callable[[Line], None]) -> SFTTrainer:
    """On a CPU, where FP8 is its formulas; the model is the same each time."""
    model = adapted(folder, "llama", RECIPE)
    fuse(model.base, torch.float32, fast, fp8)
    recipe = FP8_RECIPE if fp8 else RECIPE
    return SFTTrainer(model, recipe, Order(ROWS[4:], RECIPE.sft), ROWS[:4], folder, report)


def stack_of(trainer: SFTTrainer) -> Stack:
    """What computes the next pass."""
    forward = fused(trainer.adapted.base)
    assert forward
    return forward.stack(CPU)


def losses(lines: list[Line], name: str = "loss") -> list[float]:
    return [line[name] for line in lines if name in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Line]]:
    """A lean run without a break, and its log."""
    lines: list[Line] = []
    folder = tmp_path_factory.mktemp("whole")
    trainer_of(folder, False, True, lines.append).run()
    return folder, lines


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "lean"])
def test_the_last_steps_are_in_16_bit_and_the_memory_is_free(fast: bool, tmp_path: Path) -> None:
    lines: dict[str, list[Line]] = {"ends": [], "whole": [], "exact": []}
    stacks: list[weakref.ref[Stack]] = []
    alive: list[bool] = []

    def report(line: Line) -> None:
        lines["ends"].append(line)
        if "loss" in line:
            stacks.append(weakref.ref(stack_of(trainer)))
            alive.append(stacks[0]() is not None)

    trainer = trainer_of(tmp_path / "ends", fast, True, report)
    trainer.run()
    assert alive == [True] * FP8_STEPS + [False] * (STEPS - FP8_STEPS)
    assert not stack_of(trainer).fp8
    assert stack_of(trainer).fast == fast
    whole = trainer_of(tmp_path / "whole", fast, True, lines["whole"].append)
    whole.fp8_steps = STEPS
    whole.run()
    trainer_of(tmp_path / "exact", fast, False, lines["exact"].append).run()
    ended, rough, exact = (losses(lines[name]) for name in lines)
    assert ended[:FP8_STEPS] == rough[:FP8_STEPS]
    assert all(one != other for one, other in zip(ended[FP8_STEPS:], rough[FP8_STEPS:], strict=True))
    assert ended[0] != exact[0]
    assert losses(lines["ends"], "eval_loss")[0] == losses(lines["exact"], "eval_loss")[0]
    # Evaluated in 16 bit, also by who was never in FP8:
    other = adapted(tmp_path / "other", "llama", RECIPE)
    other.load(tmp_path / "ends" / "adapter")
    best = min(losses(lines["ends"], "eval_loss")[1:])
    assert evaluate(other, ROWS[:4], RECIPE, CPU) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("step", [FP8_STEPS - 3, FP8_STEPS])
def test_stopped_and_resumed_is_the_same_as_never_stopped(
    step: int, whole: tuple[Path, list[Line]], tmp_path: Path
) -> None:
    found: list[Line] = []

    def stop(line: Line) -> None:
        found.append(line)
        if line["step"] == step and "loss" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "stopped", False, True, stop).run()
    again = trainer_of(tmp_path / "stopped", False, True, found.append)
    again.resume()
    assert again.progress.step == len(losses(found)) == step + 1  # a step that has begun ends
    again.run()
    folder, lines = whole
    assert losses(found) == losses(lines)
    for name, tensor in adapter_of(folder).items():
        assert torch.equal(tensor, adapter_of(tmp_path / "stopped")[name]), name
