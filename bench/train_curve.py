"""Training speed by tokens a step and length of documents: python -m bench.train_curve [--plot]

Phi-3.5 with random weights of full size, NF4, r 16 on all linear layers; beside it the bound, which is what
the matrix products alone would take. Each point is the median of single steps. `--plot` draws the figures
that are there, on any machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.train_documents import documents
from bench.train_models import CONFIGS, random_base
from train import forecast
from train.batches import Order
from train.examples import Encoded
from train.model import Adapted
from train.recipe import Recipe, parse
from train.run import load_of
from train.sft import SFTTrainer
from train.shape import gpu_of, shape_of

RESULTS = Path(__file__).with_name("results") / "train-curve.json"
MODEL = "microsoft/Phi-3.5-mini-instruct"
TOKENS = (2048, 8192, 32768)
LENGTHS = (256, 2048, 16384)
WARM, STEPS = 3, 5


def recipe_of(mode: str, tokens: int, length: int) -> Recipe:
    """A recipe for one point."""
    sft = {"max_length": length, "per_device_train_batch_size": tokens // length, "logging_steps": 1}
    return parse(
        {
            "model": {"base_model": MODEL, "license": "none"},
            "data": {"path": "none"},
            "BitsAndBytesConfig": {"load_in_4bit": True},
            "SFTConfig": sft | {"max_steps": WARM + STEPS, "eval_steps": 1000},
            "memory": mode,
        },
        "the benchmark's recipe",
    )


def rows_of(length: int, tokens: int) -> list[Encoded]:
    """Enough documents of one length for all steps."""
    count = (WARM + STEPS) * tokens // length
    vocabulary = CONFIGS[MODEL].vocab_size
    return documents(length, vocabulary, count, median=length, sigma=0.0, share=1.0)


def measure(mode: str) -> list[dict[str, Any]]:
    """A row for each point in one mode."""
    device = torch.device("cuda")
    gpu = gpu_of(torch.cuda.get_device_name())
    assert gpu
    shape = shape_of(CONFIGS[MODEL])
    first = recipe_of(mode, TOKENS[0], LENGTHS[0])
    adapted = Adapted(random_base(first, device, CONFIGS[MODEL]), first, device)
    found = []
    for tokens in TOKENS:
        for length in (length for length in LENGTHS if length <= tokens):
            recipe = recipe_of(mode, tokens, length)
            order = Order(rows_of(length, tokens), recipe.sft)
            lines: list[dict[str, Any]] = []
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with tempfile.TemporaryDirectory() as folder:
                SFTTrainer(adapted, recipe, order, [], Path(folder), lines.append).run()
            load = load_of(order)
            foreseen = forecast.forecast(shape, recipe, load, gpu)
            again = 0 if recipe.fast else 2 * shape.weights
            row = {
                "mode": mode,
                "tokens_per_step": tokens,
                "document": length,
                "tokens_per_s": round(statistics.median(line["tokens_per_s"] for line in lines[WARM:])),
                "tokens_per_s_forecast": round(foreseen.tokens_per_s),
                "bound": round(gpu.flops / (foreseen.flops_per_token + again)),
                "peak_gib": round(torch.cuda.memory_stats()["active_bytes.all.peak"] / 2**30, 2),
                "peak_gib_forecast": round(foreseen.memory_gb * 1e9 / 2**30, 2),
            }
            print(json.dumps(row), flush=True)
            found.append(row)
    return found


def plot(results: dict[str, Any], to: Path) -> None:
    """A panel for each mode: a line for each document length, and its bound above it."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    for panel, mode in zip(panels, ("lean", "fast"), strict=True):
        for number, length in enumerate(LENGTHS):
            rows = [row for row in results["rows"] if (row["mode"], row["document"]) == (mode, length)]
            x, colour = [row["tokens_per_step"] for row in rows], f"C{number}"
            label = f"documents of {length:,} tokens"
            panel.plot(x, [row["tokens_per_s"] for row in rows], "o-", color=colour, label=label)
            panel.plot(x, [row["bound"] for row in rows], ":_", color=colour, markersize=16)
        panel.plot([], [], ":_", color="grey", markersize=16, label="their bound: the matrix products alone")
        panel.set_xscale("log", base=2)
        panel.set_xticks(TOKENS, [f"{tokens:,}" for tokens in TOKENS])
        panel.yaxis.set_major_formatter("{x:,.0f}")
        panel.set_title(mode)
        panel.set_xlabel("tokens a step")
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("tokens a second")
    figure.suptitle(f"Phi-3.5-mini QLoRA on one {results['device']}, {results['date']}")
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
    figure.savefig(to, dpi=110)


def main() -> None:
    """Measure on CUDA, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not given.plot and not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU, and there is none; --plot draws what was measured")
    if given.plot and not given.out.is_file():
        parser.error(f"nothing was measured yet: there is no {given.out}")
    if not given.plot:
        device = torch.cuda.get_device_name()
        rows = [row for mode in ("lean", "fast") for row in measure(mode)]
        versions = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
        results = {"device": device, "date": date.today().isoformat(), "model": MODEL}
        results |= {"versions": versions, "rows": rows}
        given.out.write_text(json.dumps(results, indent=1) + "\n")
    plot(json.loads(given.out.read_text()), given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
