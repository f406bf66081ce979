"""What docs and README say of speed in FP8 is what was measured, computed again."""

from __future__ import annotations

import json
from typing import Any

from bench.train import MODELS, fp8_table
from bench.train_models import CONFIGS
from core.command import ROOT
from tests.unit.test_train_plan import recipe_of
from train import plan_stack
from train.forecast import forecast
from train.recipe import LAST_IN_16_BIT
from train.shape import Load, gpu_of, shape_of

ROWS = json.loads((ROOT / "bench/results/train-fp8.json").read_text(encoding="utf-8"))
FULL = 8192


def said(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def speeds(model: str) -> dict[str, float]:
    """Of steps of 8,192 tokens, by mode."""
    rows = [row for row in ROWS if row["model"] == model and row["tokens_per_step"] > FULL - 256]
    return {row["mode"] if row["arm"] == "tune2chat" else row["arm"]: row["tokens_per_s"] for row in rows}


def test_the_table_is_what_was_measured() -> None:
    assert fp8_table(ROWS) in (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")


def test_the_ratios_are_those_of_the_table() -> None:
    phi = speeds("phi-3.5")
    steps = {mode: phi[f"{mode}-fp8"] / phi["unsloth"] for mode in ("lean", "fast")}
    whole = {
        mode: 1 / (LAST_IN_16_BIT / phi[mode] + (1 - LAST_IN_16_BIT) / phi[f"{mode}-fp8"]) / phi["unsloth"]
        for mode in ("lean", "fast")
    }
    text = f"make {steps['lean']:.2f} (lean) and {steps['fast']:.2f} times (fast) Unsloth's tokens a second, "
    assert text + f"whole runs {whole['lean']:.2f} and {whole['fast']:.2f} times" in said(
        "docs/benchmarks.md"
    )
    assert f"whole runs at {whole['lean']:.2f} and {whole['fast']:.2f} times on one H100" in said("README.md")
    own = {mode: phi[f"{mode}-fp8"] / phi[mode] for mode in ("lean", "fast")}
    others = [
        found[f"{mode}-fp8"] / found[mode]
        for found in (speeds(model) for model in {row["model"] for row in ROWS} - {"phi-3.5"})
        for mode in ("lean", "fast")
    ]
    text = f"{own['lean']:.2f} (lean) and {own['fast']:.2f} times (fast) as fast for Phi-3.5 on an H100, "
    assert text + f"{min(others):.2f} to {max(others):.2f} times for the others" in said("docs/train.md")
    once = phi["unsloth"]
    text = f"whole runs of Phi-3.5 {whole['lean'] * once / phi['lean']:.2f} and "
    assert text + f"{whole['fast'] * once / phi['fast']:.2f} times" in said("docs/train.md")


def test_the_forecasts_are_as_near_as_is_said() -> None:
    memory, speed = zip(*(errors(row) for row in ROWS if row["mode"].endswith("-fp8")), strict=True)
    text = f"memory within {max(memory):.0%}, speed within {max(speed):.0%}".replace("%", " %")
    assert text in said("docs/benchmarks.md")


def test_what_making_h_again_brings() -> None:
    rows = json.loads((ROOT / "bench/results/train-levers.json").read_text(encoding="utf-8"))["rows"]
    found = {
        row["variant"]: row["tokens_per_s"]
        for row in rows
        if (row["mode"], row["precision"], row["blocks"]) == ("lean", "fp8", 4)
    }
    assert f"{found['all levers']:,} tokens/s for {found['h copied too']:,}" in said("docs/benchmarks.md")


def errors(row: dict[str, Any]) -> tuple[float, float]:
    """Of the forecast, in memory and in the speed of steps in FP8."""
    shape, tokens = shape_of(CONFIGS[MODELS[row["model"]]]), row["tokens_per_step"]
    recipe = recipe_of(memory=row["mode"].partition("-")[0], precision="fp8", LoraConfig={"r": 16})
    gpu, load = gpu_of(row["device"]), Load(tokens, tokens, tokens, tokens, 2048)
    assert gpu
    plan = forecast(shape, recipe, load, gpu)
    seconds = plan_stack.seconds(shape, recipe, load, gpu, plan.flops_per_token)
    memory = plan.memory_gb * 1e9 / 2**30 / row["peak_gib"] - 1
    return abs(memory), abs(tokens / seconds / row["tokens_per_s"] - 1)
