"""Speed and memory of inference: a model of transformers, and files of llama.cpp by its own benchmark.

What is measured has `weights_gb`, and by batch in `batches` seconds to the first token (`first_s`),
`tokens_per_s` and `memory_gb`, its peak; a processor's is the process's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.cells import Cell, number
from bench.memory import PeakMemory, children_peak_gb
from bench.short_run import forget_bases
from convert.llamacpp import run, tool
from convert.quantise import convert_checkpoint, quantise
from core.errors import ConvertError
from core.machine import thread_count
from train.model import load_base
from train.recipe import Recipe

GGUF_TYPES = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M")
TOOLS = ("llama-batched-bench", "llama-quantize")


@torch.no_grad()
def written(model: Any, batches: Sequence[int], tokens: int, repeats: int) -> dict[str, Any]:
    """Have a frozen model write `tokens` after a prompt of as many (random ids), for each batch."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # which reads masks
    model.config.use_cache = True
    stored = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))
    found = {str(batch): _batch(model, batch, tokens, repeats) for batch in batches}
    model.config.use_cache = False
    model.set_attn_implementation(attention)
    return {"weights_gb": number(stored / 1e9), "batches": found}


def written_by(
    recipe: Recipe, device: str, batches: Sequence[int], tokens: int, repeats: int
) -> dict[str, Any]:
    """The same of the recipe's base, which is a folder. Raises TrainError."""
    forget_bases()
    base = load_base(recipe.model.base_model, recipe, torch.device(device))
    return written(base, batches, tokens, repeats)


def speed_cells(
    kind: str, recipes: Mapping[str, Recipe], device: str, batches: Sequence[int], tokens: int, repeats: int
) -> list[Cell]:
    """A cell <kind>|<arm> for the base of each arm's recipe."""
    return [
        Cell(f"{kind}|{arm}", partial(written_by, recipe, device, batches, tokens, repeats), alone=True)
        for arm, recipe in recipes.items()
    ]


def _batch(model: Any, batch: int, tokens: int, repeats: int) -> dict[str, Any]:
    cuda = model.device.type == "cuda"
    ids = torch.randint(100, 1000, (batch, tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    memory = PeakMemory(cuda)
    seconds(tokens)  # what is set up once, some of it for each length
    firsts = [seconds(1) for _ in range(repeats)]
    wholes = [seconds(tokens) for _ in range(repeats)]
    speeds = [batch * (tokens - 1) / (whole - first) for whole, first in zip(wholes, firsts, strict=True)]
    return {
        "first_s": [number(value) for value in firsts],
        "tokens_per_s": [number(value) for value in speeds],
        "memory_gb": number(memory.gb()),
    }


def lacking() -> str:
    """Why GGUF files can't be measured here; empty if they can."""
    try:
        for name in TOOLS:
            tool(name)
    except ConvertError as error:
        return str(error)
    return ""


def gguf_cells(base: Path, work: Path, batches: Sequence[int], tokens: int, repeats: int) -> list[Cell]:
    """A cell gguf|<type> for each type of file, where llama.cpp's tools are there."""
    if lacking():
        return []
    given = (work, batches, tokens, repeats)
    return [
        Cell(f"gguf|{kind}", partial(gguf_written, base, kind, *given), alone=True) for kind in GGUF_TYPES
    ]


def gguf_written(
    base: Path, kind: str, work: Path, batches: Sequence[int], tokens: int, repeats: int
) -> dict[str, Any]:
    """The same of `base` as a GGUF of type `kind`, which is written into `work`. Raises ConvertError."""
    work.mkdir(parents=True, exist_ok=True)
    sixteen, file = work / "F16.gguf", work / f"{kind}.gguf"
    if not sixteen.is_file():
        convert_checkpoint(base, sixteen, "f16", "study", lambda *_: None)
    if not file.is_file():
        quantise(sixteen, file, kind, None, lambda *_: None)
    found = {str(batch): _bench(file, batch, tokens, repeats) for batch in batches}
    return {"weights_gb": number(file.stat().st_size / 1e9), "batches": found}


def _bench(file: Path, batch: int, tokens: int, repeats: int) -> dict[str, Any]:
    memory: list[float] = []
    options = ["-c", str(2 * tokens * batch + 256), "-npp", str(tokens), "-ntg", str(tokens)]
    options += ["-npl", str(batch), "-t", str(thread_count()), "--output-format", "jsonl"]
    command: list[str | Path] = [tool("llama-batched-bench"), "-m", file, *options]
    rows: list[dict[str, Any]] = []
    for _ in range(repeats):
        printed = run(command, lambda _: memory.append(children_peak_gb()))
        rows += [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {
        "first_s": [row["t_pp"] for row in rows],
        "tokens_per_s": [row["speed_tg"] for row in rows],
        "memory_gb": number(max(memory) or None),
    }
