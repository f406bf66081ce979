"""Forecasts beside what was measured, of models that they were fitted to and of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.train import MODELS
from bench.train_models import CONFIGS
from tests.unit.test_train_plan import recipe_of
from train import plan_stack
from train.forecast import forecast
from train.recipe import LAST_IN_16_BIT
from train.shape import GPUS, Load, gpu_of, shape_of

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


def test_forecasts_are_near_what_was_measured() -> None:
    """Of the curve's points; its constants come from these, so this guards the formulas, not the fit.

    Those of 2,048 tokens a step were measured before such passes were recorded.
    """
    curve = json.loads((RESULTS / "train-curve.json").read_text())
    shape = shape_of(CONFIGS[MODELS["phi-3.5"]])
    for row in [row for row in curve["rows"] if row["tokens_per_step"] > 2048]:
        tokens, length = row["tokens_per_step"], row["document"]
        load = Load(tokens, tokens, tokens, tokens, length)
        plan = forecast(shape, recipe_of(memory=row["mode"]), load, GPUS["H200"])
        assert plan.tokens_per_s == pytest.approx(row["tokens_per_s"], rel=0.06)
        assert plan.memory_gb * 1e9 / 2**30 == pytest.approx(row["peak_gib"], rel=0.2)


def test_forecasts_of_fp8_are_near_what_was_measured() -> None:
    """Of five models, to four of which its constants were fitted; small steps are recorded."""
    rows = json.loads((RESULTS / "train-fp8.json").read_text())
    ours = [row for row in rows if row["mode"].endswith("-fp8") or row["tokens_per_step"] < 4096]
    assert {row["model"] for row in ours} == {"phi-3.5", "qwen3-4b", "gemma-3-4b", "gemma-2b", "mistral-7b"}
    for row in ours:
        shape, tokens = shape_of(CONFIGS[MODELS[row["model"]]]), row["tokens_per_step"]
        memory, _, precision = row["mode"].partition("-")
        recipe = recipe_of(memory=memory, precision=precision or "16-bit", LoraConfig={"r": 16})
        gpu = gpu_of(row["device"])
        assert gpu
        load = Load(tokens, tokens, tokens, tokens, 2048)
        plan = forecast(shape, recipe, load, gpu)
        assert plan.memory_gb * 1e9 / 2**30 == pytest.approx(row["peak_gib"], rel=0.08)
        # What was measured are the steps in FP8, and the forecast is of the last ones too
        seconds = plan_stack.seconds(shape, recipe, load, gpu, plan.flops_per_token)
        assert tokens / seconds == pytest.approx(row["tokens_per_s"], rel=0.15)


def test_a_forecast_of_fp8_is_of_the_steps_in_16_bit_too() -> None:
    shape, load, gpu = shape_of(CONFIGS[MODELS["phi-3.5"]]), Load(8192, 8192, 8192, 8192, 2048), GPUS["H100"]
    exact, fp8 = (recipe_of(memory="fast", precision=precision) for precision in ("16-bit", "fp8"))
    plan = forecast(shape, exact, load, gpu)
    slow = load.tokens / plan.tokens_per_s
    quick = plan_stack.seconds(shape, fp8, load, gpu, plan.flops_per_token)
    assert quick < slow
    of_both = quick * (1 - LAST_IN_16_BIT) + slow * LAST_IN_16_BIT
    assert load.tokens / forecast(shape, fp8, load, gpu).tokens_per_s == pytest.approx(of_both)


def test_a_16_bit_base_has_fp8s_matrices_beside_it() -> None:
    shape, load = shape_of(CONFIGS[MODELS["phi-3.5"]]), Load(8192, 8192, 8192, 8192, 2048)
    whole = {"memory": "fast", "BitsAndBytesConfig": None}
    exact, fp8 = (
        forecast(shape, recipe_of(**whole, precision=precision), load, GPUS["H200"]).memory_gb
        for precision in ("16-bit", "fp8")
    )
    assert fp8 - exact == pytest.approx(2 * shape.weights / 1e9)


@pytest.mark.parametrize("name", ["qwen3-4b", "gemma-3-4b"])
def test_forecasts_of_models_that_they_were_not_fitted_to(name: str) -> None:
    shape = shape_of(CONFIGS[MODELS[name]])
    rows = json.loads((RESULTS / "train.json").read_text())
    ours = [row for row in rows if row["arm"] == "tune2chat" and row["model"] == name]
    assert {row["mode"] for row in ours} == {"lean", "fast"}
    for row in ours:
        gpu, tokens = gpu_of(row["device"]), row["tokens_per_step"]
        assert gpu
        recipe = recipe_of(memory=row["mode"], LoraConfig={"r": 16})
        plan = forecast(shape, recipe, Load(tokens, tokens, tokens, tokens, 2048), gpu)
        assert plan.trainable == row["trainable"]
        assert plan.memory_gb * 1e9 / 2**30 == pytest.approx(row["peak_gib"], rel=0.08)
        assert plan.tokens_per_s == pytest.approx(row["tokens_per_s"], rel=0.15)
