"""What GPUs can do, for forecasts."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """`flops`: bf16 matrix products a second as measured, not as advertised; `bandwidth`: bytes a second."""

    flops: float
    bandwidth: float
    peak: float  # advertised, which MFU is a share of
    memory: float  # bytes
    ampere: bool = True  # or newer: bf16 and FlashAttention


# By a part of torch.cuda.get_device_name. The first two measured with 8192-wide matrices, the others half of
# what is advertised, rounded.
GPUS = {
    "H200": Gpu(750e12, 4.2e12, 989e12, 141e9),
    "H100": Gpu(750e12, 3.0e12, 989e12, 80e9),
    "A100": Gpu(250e12, 1.5e12, 312e12, 80e9),
    "L40S": Gpu(200e12, 0.7e12, 362e12, 48e9),
    "4090": Gpu(150e12, 0.9e12, 165e12, 24e9),
    "3090": Gpu(65e12, 0.8e12, 71e12, 24e9),
    "A10": Gpu(70e12, 0.5e12, 125e12, 24e9),
    "L4": Gpu(60e12, 0.25e12, 121e12, 24e9),
    "T4": Gpu(30e12, 0.25e12, 65e12, 16e9, ampere=False),
}


def gpu_of(name: str) -> Gpu | None:
    """The figures of a GPU by its name; None if it is none that we know."""
    return next((gpu for part, gpu in GPUS.items() if re.search(rf"\b{part}(?!\d)", name)), None)
