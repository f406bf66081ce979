"""What a decoder layer does between its matrix products, each in one pass over memory, by Triton.

All compute in fp32 and store in the tensors' own type. `plain.py` has the same functions as formulas; the
tests hold one against the other.
"""

from __future__ import annotations

import torch

from train.fused.gate_kernels import gated, gated_backward
from train.fused.nf4_kernels import decode
from train.fused.row_kernels import cross_entropy, rms_norm, rms_norm_backward
from train.fused.turn_kernels import rotate, rotate_backward

__all__ = [
    "cross_entropy",
    "decode",
    "gated",
    "gated_backward",
    "product",
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "rotate_backward",
]


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b` in fp32."""
    return torch.mm(a, b, out_dtype=torch.float32)
