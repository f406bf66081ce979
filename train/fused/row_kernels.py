"""Kernels that take a row at a time: root mean square norms, and the loss of a row of logits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _rms_norm(x, weight, out, eps, offset, width, out_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * width + at, inside, 0.0).to(tl.float32)
    scale = tl.load(weight + at, inside, 0.0).to(tl.float32) + offset
    rstd = tl.rsqrt(tl.sum(value * value) / width + eps)
    tl.store(out + row * out_row + at, value * rstd * scale, inside)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, border: int = 0
) -> torch.Tensor:
    """`x` (T, width) over its root mean square, times `weight + offset`; as many columns more as `border`."""
    rows, width = x.shape
    out, block = x.new_empty(rows, width + border), triton.next_power_of_2(width)
    _rms_norm[(rows,)](x, weight, out, eps, offset, width, width + border, BLOCK=block, num_warps=8)
    return out


@triton.jit
def _rms_norm_backward(gradient, x, weight, residual, out, eps, offset, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row + at, inside, 0.0).to(tl.float32)
    scale = tl.load(weight + at, inside, 0.0).to(tl.float32) + offset
    given = tl.load(gradient + row + at, inside, 0.0).to(tl.float32) * scale
    kept = tl.load(residual + row + at, inside, 0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(value * value) / width + eps)
    normal = value * rstd
    inner = tl.sum(given * normal) / width
    tl.store(out + row + at, kept + rstd * (given - normal * inner), inside)


def rms_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    eps: float,
    offset: float,
) -> torch.Tensor:
    """The gradient of `x` (T, width) from that of `rms_norm(x)`, plus `residual`, in whose place it goes."""
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _rms_norm_backward[(rows,)](
        gradient, x, weight, residual, residual, eps, offset, width, BLOCK=block, num_warps=8
    )
    return residual


@triton.jit
def _cross_entropy(logits, labels, losses, width: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * width
    top, total = -float("inf"), 0.0
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(line + at, at < width, -float("inf")).to(tl.float32)
        highest = tl.maximum(top, tl.max(value))
        total = total * tl.exp(top - highest) + tl.sum(tl.exp(value - highest))
        top = highest
    label = tl.load(labels + row)
    log_total = top + tl.log(total)
    tl.store(losses + row, log_total - tl.load(line + label).to(tl.float32))
    tl.debug_barrier()
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(line + at, at < width, -float("inf")).to(tl.float32)
        share = tl.exp(value - log_total) - tl.where(at == label, 1.0, 0.0)
        tl.store(line + at, share, at < width)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Losses (N, fp32) of `logits` (N, vocabulary) for `labels` (N); their gradient replaces the logits."""
    losses = torch.empty(len(labels), device=logits.device, dtype=torch.float32)
    _cross_entropy[(len(labels),)](logits, labels, losses, logits.shape[1], BLOCK=4096, num_warps=8)
    return losses
