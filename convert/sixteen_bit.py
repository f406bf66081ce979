"""Two decisions about the 16-bit GGUF: f16 or bf16, and the name that llama.cpp reads."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from convert.checkpoint import Checkpoint
from convert.names import folder_name
from convert.sentencepiece_file import is_byte_level
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
    """general.name: the base's name and the run's. llama.cpp reads it (llama_vocab::impl::load).

    A Phi-3's always contains `Phi-3`, without which the newline after its special tokens isn't stripped. A
    vocabulary of bytes never does, a Phi-4's for one: under that name llama.cpp looks for `</s>` in it, and
    doesn't load the file.
    """
    config = read_json(base / "config.json")
    named = config.get("_name_or_path")
    origin = Path(str(named)).name if named else folder_name(base).rpartition("/")[2]
    name = origin if origin == run else f"{origin} {run}"
    tokenizer = base / "tokenizer.json"
    if tokenizer.is_file() and is_byte_level(read_json(tokenizer)):
        return re.sub("(phi)-?(3)", r"\1_\2", name, flags=re.IGNORECASE)
    if config.get("model_type") == "phi3" and not re.search("phi-?3", name, re.IGNORECASE):
        return f"Phi-3 {name}"
    return name
