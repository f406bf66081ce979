"""Measure recipes beside their forecasts: python -m bench.train_recipes [RECIPE ...]

Each recipe's model, with random weights of full size, trains a few steps at its own settings, on documents
whose lengths are those of a chat data set (log-normal, median 350, sigma 0.8, 16 to 2,048 tokens; half of
each counts). Needs CUDA.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.short_run import WARM, short_run
from bench.train_documents import documents
from bench.train_models import CONFIGS, random_base
from train import forecast
from train.batches import Batch, Order
from train.model import Adapted
from train.recipe import RECIPES, Recipe, load_recipe
from train.run import load_of
from train.shape import gpu_of, shape_of

RESULTS = Path(__file__).with_name("results") / "train-recipes.json"
STEPS = 20
KERNELS = 16  # of which the times are kept


def measure(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Train `steps` steps; return the forecast and what was measured."""
    device = torch.device("cuda")
    config = CONFIGS[recipe.model.base_model]
    sft = recipe.sft.model_copy(update={"max_steps": steps, "logging_steps": 1, "eval_steps": steps})
    recipe = recipe.model_copy(update={"sft": sft})
    order = Order(documents(min(sft.max_length, 2048), config.vocab_size), sft)
    load, shape, gpu = load_of(order), shape_of(config), gpu_of(torch.cuda.get_device_name())
    assert gpu
    recipe = forecast.settle(recipe, shape, load, gpu, torch.cuda.get_device_properties(device).total_memory)
    began = time.perf_counter()
    adapted = Adapted(random_base(recipe, device, config), recipe, device)
    load_seconds = time.perf_counter() - began
    foreseen = forecast.forecast(shape, recipe, load, gpu)
    torch.cuda.empty_cache()
    loaded = torch.cuda.memory_allocated() / forecast.GB
    lines = short_run(adapted, recipe, order).steps
    memory = torch.cuda.memory_stats()["active_bytes.all.peak"] / forecast.GB
    kernels = kernel_times(adapted, order.step(0)[0].to(device))
    speeds = [line["tokens_per_s"] for line in lines[WARM:]]
    tokens = [line["tokens"] - before["tokens"] for before, line in itertools.pairwise(lines[WARM - 1 :])]
    speed = sum(tokens) / sum(count / rate for count, rate in zip(tokens, speeds, strict=True))
    return {
        "arm": "tune2chat",
        "recipe": recipe.name,
        "model": recipe.model.base_model,
        "mode": recipe.pace,
        "trainable": sum(p.numel() for p in adapted.parameters_to_train()),
        "tokens_per_micro_batch": round(load.tokens),
        "tokens_per_s": round(speed),
        "tokens_per_s_spread": [round(min(speeds)), round(max(speeds))],
        "gpu_busy": round(sum(kernels.values()) * speed / order.step(0)[0].tokens, 3),
        "kernel_ms": {name[:90]: round(1e3 * s, 2) for name, s in list(kernels.items())[:KERNELS]},
        "tokens_per_s_forecast": round(foreseen.tokens_per_s),
        "peak_gb": round(memory, 2),
        "peak_gb_forecast": round(foreseen.memory_gb, 2),
        "loaded_gb": round(loaded, 2),
        "mfu": round(speed * foreseen.flops_per_token / gpu.peak, 3),
        "load_seconds": round(load_seconds, 1),
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
    }


def kernel_times(adapted: Adapted, batch: Batch) -> dict[str, float]:
    """Seconds of each kernel in one micro-batch, forward and backward, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        adapted(batch).backward()
        torch.cuda.synchronize()
    times = {event.key: event.self_device_time_total / 1e6 for event in profile.key_averages()}
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def main() -> None:
    """Measure the recipes that were named, or all for which there is a shape, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", choices=("lean", "fast"), help="instead of what fits")
    parser.add_argument("--batch", type=int, help="per_device_train_batch_size, instead of the recipe's")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU, and there is none")
    about = {"device": torch.cuda.get_device_name(), "date": date.today().isoformat()}
    about |= {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    for name in given.recipes:
        recipe = load_recipe(name)
        if recipe.model.base_model not in CONFIGS:
            continue
        if given.batch:
            sft = recipe.sft.model_copy(update={"per_device_train_batch_size": given.batch})
            recipe = recipe.model_copy(update={"sft": sft})
        if given.memory:
            recipe = recipe.model_copy(update={"memory": given.memory})
        try:
            row = measure(recipe, given.steps) | about
        except torch.OutOfMemoryError as error:
            row = {"recipe": name, "failed": str(error)[:200]} | about
        gc.collect()  # of the last base nothing must be left
        torch.cuda.empty_cache()
        print(json.dumps(row), flush=True)
        rows.append(row)
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
