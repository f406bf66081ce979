"""What docs and README say of the speed of training is what was measured, computed again."""

from __future__ import annotations

import json
import math
import statistics
from functools import cache
from typing import Any

from bench.train import MODELS, fp8_table
from bench.train_models import CONFIGS
from core.command import ROOT
from tests.unit.test_train_plan import recipe_of
from train import plan_stack
from train.forecast import forecast
from train.recipe import LAST_IN_16_BIT
from train.shape import GPUS, Load, gpu_of, shape_of

PAGE = "docs/benchmarks.md"
FULL = 8192


@cache
def results(name: str) -> Any:
    return json.loads((ROOT / f"bench/results/{name}.json").read_text(encoding="utf-8"))


ROWS = results("train-fp8")


def said(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def speeds(model: str) -> dict[str, float]:
    """Of steps of 8,192 tokens, by mode."""
    rows = [row for row in ROWS if row["model"] == model and row["tokens_per_step"] > FULL - 256]
    return {row["mode"] if row["arm"] == "tune2chat" else row["arm"]: row["tokens_per_s"] for row in rows}


def test_the_table_is_what_was_measured() -> None:
    assert fp8_table(ROWS) in (ROOT / PAGE).read_text(encoding="utf-8")


def test_the_ratios_are_those_of_the_table() -> None:
    phi = speeds("phi-3.5")
    steps = {mode: phi[f"{mode}-fp8"] / phi["unsloth"] for mode in ("lean", "fast")}
    whole = {
        mode: 1 / (LAST_IN_16_BIT / phi[mode] + (1 - LAST_IN_16_BIT) / phi[f"{mode}-fp8"]) / phi["unsloth"]
        for mode in ("lean", "fast")
    }
    text = f"make {steps['lean']:.2f} (lean) and {steps['fast']:.2f} times (fast) Unsloth's tokens a second, "
    assert text + f"whole runs {whole['lean']:.2f} and {whole['fast']:.2f} times" in said(PAGE)
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
    assert text in said(PAGE)


def fp8_levers(mode: str) -> dict[str, Any]:
    """Rows of steps of 8,192 tokens, by variant."""
    rows = results("train-levers")["rows"]
    asked = (mode, "fp8", 4)
    return {row["variant"]: row for row in rows if (row["mode"], row["precision"], row["blocks"]) == asked}


def test_what_making_h_again_brings() -> None:
    found = {name: row["tokens_per_s"] for name, row in fp8_levers("lean").items()}
    text = f"{found['all levers']:,} tokens/s instead of the {found['h copied too']:,} with"
    assert text in said(PAGE)


def test_where_a_steps_time_goes() -> None:
    row = fp8_levers("fast")["all levers"]
    times = row["milliseconds"]
    text = f"Of a step ({row['step_ms']:.0f} ms, fast) the matrix products are"
    text += f" {times['matrix products']:.0f} ms, and {times['operands in FP8']:.0f} more make"
    assert f"{text} their FP8 operands" in said(PAGE)


def test_variants_are_to_be_measured_again_until_they_are_there() -> None:
    small = [row for row in results("train-levers")["rows"] if row["blocks"] == 1]
    assert ("2,048 tokens a step are to be measured again" in said(PAGE)) == (not small)


def spread(row: dict[str, Any]) -> float:
    """How far the burst that is furthest from the median is from it."""
    median = statistics.median(row["tokens_per_s_each"])
    return max(abs(each / median - 1) for each in row["tokens_per_s_each"])


def test_how_far_bursts_are_apart() -> None:
    counts = {len(row["tokens_per_s_each"]) for row in results("train")}
    words = {3: "three", 4: "four", 5: "five"}
    assert f"medians of {words[min(counts)]} to {words[max(counts)]} bursts, each" in said(PAGE)
    wide = [row for row in results("train") if round(spread(row), 2) > 0.07]
    assert len(wide) == 6
    for row in wide:
        low, high = min(row["tokens_per_s_each"]), max(row["tokens_per_s_each"])
        assert f"between {low:,} and {high:,}" in said(PAGE) or f"{low:,} and {high:,} (" in said(PAGE)
    assert "All others are within 7 % of their median" in said(PAGE)
    lowest = max(1 - min(row["tokens_per_s_each"]) / row["tokens_per_s"] for row in ROWS)
    counts = {len(row["tokens_per_s_each"]) for row in ROWS}
    text = f"medians of {words[min(counts)]} or {words[max(counts)]} bursts, the lowest of which are up to"
    assert f"{text} {lowest:.0%}".replace("%", " %") in said(PAGE)


def test_rows_say_which_gpu_they_are_of() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    names = {"phi-3.5": "Phi-3.5", "mistral-7b": "Mistral-7B", "gemma-2b": "Gemma-2B"}
    names |= {"qwen3-4b": "Qwen3-4B", "gemma-3-4b": "Gemma 3 4B"}
    for model, name in names.items():
        rows = [row for row in results("train") if row["model"] == model]
        (gpu,) = {gpu_of(row["device"]) for row in rows}
        found = {row["mode"] if row["arm"] == "tune2chat" else row["arm"]: row for row in rows}
        cells = [
            f"{found[arm]['tokens_per_s']:,}, {found[arm]['peak_gib']:.1f} GiB"
            for arm in ("lean", "fast", "unsloth")
        ]
        apart = " (H100)" if gpu == GPUS["H100"] else ""
        assert f"| {name}{apart} | {' | '.join(cells)} |" in page


def test_steps_that_waited_for_the_processor() -> None:
    curve = results("train-curve")
    again = {
        small: [row for row in curve["rows"] if (row["tokens_per_step"] == 2048) == small]
        for small in (True, False)
    }
    speeds = [row["tokens_per_s_second_run"] for row in again[True]]
    apart = max(abs(row["tokens_per_s_second_run"] / row["tokens_per_s"] - 1) for row in again[False])
    assert f"measured {curve['date']}, before passes were recorded" in said(PAGE)
    text = f"had {min(speeds):,} to {max(speeds):,} tokens/s, and everywhere else the same within "
    assert f"{text}{math.ceil(100 * apart)} %" in said(PAGE)


def test_what_two_gpus_that_share_a_base_make() -> None:
    rows = [*results("train-sharded"), *results("train-sharded-equal")]
    one, *shared = sorted((row for row in rows if "losses" in row), key=lambda row: row["cards"])
    low, high = min(row["tokens_per_s"] for row in shared), max(row["tokens_per_s"] for row in shared)
    forecasts = [f"{round(row['forecast_tokens_per_s'], -1):,.0f}" for row in (one, shared[0])]
    text = f"| {one['tokens_per_s']:,.0f} | {round(low, -1):,.0f} to {round(high, -1):,.0f} |"
    assert f"{text} {' and '.join(forecasts)} |" in said(PAGE)
    peaks = f"| {one['peak_gb']:.2f} GB | {max(row['peak_gb'] for row in shared):.2f} GB |"
    assert f"| peak on a GPU {peaks}" in said(PAGE)
    exact = [f"{round(row['tokens_per_s'], -1):,.0f}" for row in results("train-sharded-equal")]
    assert f"they made {' and '.join(exact)}, and" in said(PAGE)


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
