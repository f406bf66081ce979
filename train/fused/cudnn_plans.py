"""Plans of cuDNN's attention: one for all batches of about the same number and length of rows.

Releases of cuDNN differ in what they take and in what they get right, and a wrong gradient shows nowhere. So
the first plan for a model has to agree with PyTorch's attention before it is used.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from train.fused import row_attention
from train.fused.cudnn_attention import Plan
from train.fused.heads import Heads
from train.packing import Batch

HOPPER = 9  # compute capability's first number; not tried on others
ROWS, LONGEST, TOKENS = 8, 128, 1024  # the least that a plan is made for
NEAR = 2e-2  # relative error in bf16; right ones have some 3e-3


def plan_for(qkv: torch.Tensor, heads: Heads, batch: Batch) -> Plan | None:
    """The plan for this batch, or None where FlashAttention has to do it."""
    if qkv.dtype != torch.bfloat16 or heads.head % 16:  # of other heads cuDNN's gradients aren't right
        return None
    if heads.window is not None and heads.window < batch.max_length:
        return None
    if not is_there(qkv.device) or not _is_right(heads, qkv.device):
        return None
    rows = max(ROWS, _power_of_two(len(batch.cu_seq_lens) - 1))
    longest = max(LONGEST, _power_of_two(batch.max_length))
    step = max(TOKENS, _power_of_two(len(qkv)) // 8)
    exact = torch.are_deterministic_algorithms_enabled()
    return _plan(heads, rows, longest, -len(qkv) % step + len(qkv), exact, qkv.device)


@cache
def is_there(device: torch.device) -> bool:
    """Whether the device is a GPU for it, and the frontend is installed."""
    if device.type != "cuda" or not find_spec("cudnn"):
        return False
    return torch.cuda.get_device_capability(device)[0] == HOPPER


@cache
def _is_right(heads: Heads, device: torch.device) -> bool:
    """Whether this release of cuDNN computes what it should; tried once, with small rows."""
    plan = _plan(heads, ROWS, LONGEST, TOKENS, torch.are_deterministic_algorithms_enabled(), device)
    right = plan is not None and agrees(plan, heads, device)
    if not right:
        warnings.warn("cuDNN can't do this model's attention here; FlashAttention 2 does it", stacklevel=1)
    return right


@cache
def _plan(
    heads: Heads, rows: int, longest: int, tokens: int, exact: bool, device: torch.device
) -> Plan | None:
    try:
        import cudnn
    except (ImportError, OSError, AssertionError):  # it wants one libcudnn, and finds it when it's imported
        return None
    try:
        return Plan(heads, rows, longest, tokens, exact, _handle(device))
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError):  # whichever way cuDNN refuses
        return None


@cache
def _handle(device: torch.device) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


def agrees(plan: Plan, heads: Heads, device: torch.device) -> bool:
    """Whether a plan's results and gradients for two small rows are PyTorch's in fp32."""
    starts = torch.tensor([0, 100, 103], dtype=torch.int32, device=device)
    drawn = torch.Generator(device).manual_seed(0)

    def some(count: int) -> torch.Tensor:
        return torch.randn(103, count, heads.head, generator=drawn, device=device).to(torch.bfloat16)

    qkv, gradient = some(heads.query + 2 * heads.key).flatten(1), some(heads.query)
    out, lse = plan.forward(qkv, starts)
    found = [out, *plan.backward(gradient, qkv, out, lse, starts)]
    exact, whole = heads.split(qkv.float()), replace(heads, window=None)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no gradients that are the same each time
        wanted = row_attention.attend(exact, whole, starts)
        gradients = row_attention.attend_backward(gradient.float(), exact, whole, starts)
    pairs = zip(found, (wanted, *gradients), strict=True)
    return all(bool((a - b).norm() <= NEAR * b.norm()) for a, b in pairs)  # NaN isn't


def _power_of_two(count: int) -> int:
    """The next that isn't less."""
    return 1 << (count - 1).bit_length()
