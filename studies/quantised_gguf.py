"""Speed and size of a base as GGUF files, by llama.cpp's own benchmark of batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convert.llamacpp import run, tool
from convert.quantise import convert_checkpoint, quantise
from core.errors import ConvertError
from core.machine import thread_count

TYPES = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M")
TOOLS = ("llama-batched-bench", "llama-quantize")


def lacking() -> str:
    """Why GGUF files can't be measured here; empty if they can."""
    try:
        for name in TOOLS:
            tool(name)
    except ConvertError as error:
        return str(error)
    return ""


def measure(
    base: Path, kind: str, work: Path, batches: list[int], tokens: int, repeats: int
) -> dict[str, Any]:
    """Write `base` as a GGUF of type `kind` in `work`, and as many tokens as the prompt has, for each batch.

    Returns the file's size and, by batch, seconds to the first token and tokens/s. Raises ConvertError.
    """
    work.mkdir(parents=True, exist_ok=True)
    sixteen = work / "F16.gguf"
    if not sixteen.is_file():
        convert_checkpoint(base, sixteen, "f16", "study", lambda *_: None)
    file = work / f"{kind}.gguf"
    if not file.is_file():
        quantise(sixteen, file, kind, None, lambda *_: None)
    many = max(batches)
    options = ["-c", str(2 * tokens * many + 256), "-npp", str(tokens), "-ntg", str(tokens)]
    options += ["-npl", ",".join(map(str, batches)), "-t", str(thread_count()), "--output-format", "jsonl"]
    found: dict[str, dict[str, list[float]]] = {
        str(batch): {"first_s": [], "tokens_per_s": []} for batch in batches
    }
    for _ in range(repeats):
        printed = run([tool("llama-batched-bench"), "-m", file, *options])
        for line in filter(lambda text: text.startswith("{"), printed.splitlines()):
            row = json.loads(line)
            found[str(row["pl"])]["first_s"].append(row["t_pp"])
            found[str(row["pl"])]["tokens_per_s"].append(row["speed_tg"])
    return {"weights_gb": file.stat().st_size / 1e9, "batches": found}
