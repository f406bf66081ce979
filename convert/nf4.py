"""NF4 with double quantisation (arXiv:2305.14314), simulated: the values that a QLoRA run trained on."""

from __future__ import annotations

import torch
from bitsandbytes import functional

BLOCK_SIZE = 64  # values that share a scale: transformers' load_in_4bit has no other


def is_quantised(name: str, weight: torch.Tensor) -> bool:
    """Whether load_in_4bit quantises a tensor: the weights of linear layers, but not embedding and head."""
    return weight.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe"))


def simulate(weight: torch.Tensor) -> torch.Tensor:
    """Quantise to NF4 and back, in the weight's own type, as bitsandbytes does between load and forward."""
    packed, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
    )
    values: torch.Tensor = functional.dequantize_4bit(packed, state)
    return values
