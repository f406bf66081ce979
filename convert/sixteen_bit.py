"""Two decisions about the 16-bit GGUF: f16 or bf16, and the name that llama.cpp reads."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from convert.checkpoint import Checkpoint
from convert.source import read_json

SMALL_PARAMS = 1e9  # below, bf16's slowness on a CPU (six times, in tests) weighs more than its range
F16_MAX = torch.finfo(torch.float16).max


def outtype(checkpoint: Checkpoint) -> str:
    """F16 for an f16 checkpoint, which loses nothing, and for a small one without values beyond its range."""
    if all(checkpoint.dtype(name) == torch.float16 for name in checkpoint.names):
        return "F16"
    if checkpoint.n_params >= SMALL_PARAMS:
        return "BF16"
    overflows = any(checkpoint.read(name).abs().max() > F16_MAX for name in checkpoint.names)
    return "BF16" if overflows else "F16"


def model_name(base: Path, run: str) -> str:
    """general.name: the base's name and the run's; a Phi-3's always contains `Phi-3`, which llama.cpp needs
    to strip the newline after its special tokens (llama_vocab::impl::load in src/llama-vocab.cpp)."""
    config = read_json(base / "config.json")
    origin = Path(str(config.get("_name_or_path") or base.resolve())).name
    name = origin if origin == run else f"{origin} {run}"
    if config.get("model_type") == "phi3" and not re.search("phi-?3", name, re.IGNORECASE):
        return f"Phi-3 {name}"
    return name
