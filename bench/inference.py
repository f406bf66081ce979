"""Speed and memory of inference: a model of transformers, and files of llama.cpp by its own benchmark."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.cells import number
from bench.memory import PeakMemory, children_peak_gb
from convert.llamacpp import run, tool
from convert.quantise import convert_checkpoint, quantise
from core.errors import ConvertError
from core.machine import thread_count

GGUF_TYPES = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M")
TOOLS = ("llama-batched-bench", "llama-quantize")


@torch.no_grad()
def written(model: Any, batches: Sequence[int], tokens: int, repeats: int) -> dict[str, Any]:
    """Have a frozen model write `tokens` after a prompt of as many (random ids), for each batch.

    Returns `weights_gb` and by batch seconds to the first token, tokens/s and the memory at its peak
    (`memory_gb`; a processor's is the process's).
    """
    attention = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # which reads masks
    model.config.use_cache = True
    stored = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))
    found = {str(batch): _batch(model, batch, tokens, repeats) for batch in batches}
    model.config.use_cache = False
    model.set_attn_implementation(attention)
    return {"weights_gb": number(stored / 1e9), "batches": found}


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
