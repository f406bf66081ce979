"""The optimizer and the learning rate's course, by the upstream names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from core.errors import TrainError
from train.recipe import Sft


def make_optimizer(parameters: Iterable[nn.Parameter], sft: Sft) -> torch.optim.Optimizer:
    """AdamW with transformers' betas and epsilon. Raises TrainError."""
    options: dict[str, Any] = {"lr": sft.learning_rate, "weight_decay": sft.weight_decay}
    if sft.optim == "adamw_torch_fused":
        return torch.optim.AdamW(parameters, fused=True, **options)
    try:
        import bitsandbytes.optim
    except ImportError as error:
        raise TrainError(f"optim {sft.optim!r} needs bitsandbytes ({error}); say adamw_torch_fused") from None
    bits = 8 if sft.optim == "paged_adamw_8bit" else 32
    paged: Any = bitsandbytes.optim.adamw.AdamW  # untyped
    # Only CUDA has memory that can be paged.
    options["is_paged"] = torch.cuda.is_available()
    optimizer: torch.optim.Optimizer = paged(parameters, optim_bits=bits, **options)
    return optimizer


def warmup_steps(sft: Sft, steps: int) -> int:
    """Steps until the learning rate is reached."""
    return sft.warmup_steps or round(sft.warmup_ratio * steps)


def make_schedule(optimizer: torch.optim.Optimizer, sft: Sft, steps: int) -> Any:
    """A learning rate scheduler of torch over `steps` steps."""
    return get_scheduler(sft.lr_scheduler_type, optimizer, warmup_steps(sft, steps), steps)
