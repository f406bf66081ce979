"""Triton's kernels between a layer's matrix products: norms, the gate, and the loss; the others by name."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from train.fused import reference_ops
from train.fused.fp8_kernels import quantise, quantise_borders, quantise_matrix, quantise_nf4
from train.fused.nf4_kernels import decode
from train.fused.rotary_kernels import rotate, rotate_backward


@triton.jit
def _rms_norm(x, weight, residual, out, eps, offset, width, out_row, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * width + at, inside, 0.0).to(tl.float32)
    scale = tl.load(weight + at, inside, 0.0).to(tl.float32) + offset
    made = value * tl.rsqrt(tl.sum(value * value) / width + eps) * scale
    if ADDS:
        made += tl.load(residual + row * width + at, inside, 0.0).to(tl.float32)
    tl.store(out + row * out_row + at, made, inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    border: int = 0,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x` (T, width) over its root mean square, times `weight + offset`, plus `residual` if there is one.

    The result has as many columns more as `border`, which aren't written.
    """
    rows, width = x.shape
    out, block = x.new_empty(rows, width + border), triton.next_power_of_2(width)
    adds, added = residual is not None, x if residual is None else residual
    _rms_norm[(rows,)](
        x, weight, added, out, eps, offset, width, width + border, ADDS=adds, BLOCK=block, num_warps=8
    )
    return out


@triton.jit
def _rms_norm_backward(
    gradient, x, weight, residual, out, eps, offset, width, ADDS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row + at, inside, 0.0).to(tl.float32)
    scale = tl.load(weight + at, inside, 0.0).to(tl.float32) + offset
    given = tl.load(gradient + row + at, inside, 0.0).to(tl.float32) * scale
    rstd = tl.rsqrt(tl.sum(value * value) / width + eps)
    normal = value * rstd
    inner = tl.sum(given * normal) / width
    made = rstd * (given - normal * inner)
    if ADDS:
        made += tl.load(residual + row + at, inside, 0.0).to(tl.float32)
    tl.store(out + row + at, made, inside)


def rms_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    eps: float,
    offset: float,
) -> torch.Tensor:
    """The gradient of `x` (T, width) from that of `rms_norm(x)`; plus `residual`, in whose place it goes."""
    rows, width = x.shape
    block, out = triton.next_power_of_2(width), torch.empty_like(x) if residual is None else residual
    adds = residual is not None
    _rms_norm_backward[(rows,)](
        gradient, x, weight, out, out, eps, offset, width, ADDS=adds, BLOCK=block, num_warps=8
    )
    return out


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


_TWICE, _CUBIC = tl.constexpr(2 * reference_ops.ROOT), tl.constexpr(reference_ops.CUBIC)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _activate(gate, GELU: tl.constexpr):
    """The activation and its derivative."""
    if GELU:  # by the tangent: 0.5 (1 + tanh z) is sigmoid 2z
        share = _sigmoid((gate + gate * gate * gate * _CUBIC) * _TWICE)
        inner = (1.0 + gate * gate * (3.0 * _CUBIC)) * _TWICE
        return gate * share, share + gate * share * (1.0 - share) * inner
    share = _sigmoid(gate)
    return gate * share, share * (1.0 + gate * (1.0 - share))


@triton.jit
def _gates(gate_up, width, BLOCK: tl.constexpr):
    """This program's row and columns, which of them there are, where gate is, and gate and up."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, place = column < width, gate_up + row * 2 * width + column
    gate = tl.load(place, inside, 0.0).to(tl.float32)
    up = tl.load(place + width, inside, 0.0).to(tl.float32)
    return row * width + column, inside, place, gate, up


@triton.jit
def _gated(gate_up, out, width, GELU: tl.constexpr, BLOCK: tl.constexpr):
    at, inside, _, gate, up = _gates(gate_up, width, BLOCK)
    active, _ = _activate(gate, GELU)
    tl.store(out + at, active * up, inside)


def gated(gate_up: torch.Tensor, gelu: bool) -> torch.Tensor:
    """`act(gate) * up` (T, width) of the halves of `gate_up` (T, 2 width)."""
    tokens, width = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, width)
    _gated[(tokens, triton.cdiv(width, 1024))](gate_up, out, width, GELU=gelu, BLOCK=1024)
    return out


@triton.jit
def _gated_backward(gradient, gate_up, width, GELU: tl.constexpr, BLOCK: tl.constexpr):
    at, inside, place, gate, up = _gates(gate_up, width, BLOCK)
    given = tl.load(gradient + at, inside, 0.0).to(tl.float32)
    active, derivative = _activate(gate, GELU)
    tl.store(place, given * up * derivative, inside)
    tl.store(place + width, given * active, inside)
    tl.store(gradient + at, active * up, inside)


def gated_backward(gradient: torch.Tensor, gate_up: torch.Tensor, gelu: bool) -> None:
    """From the `gradient` of `gated(...)`, put that of `gate_up` in its place, and `gated(...)` in its."""
    tokens, width = gradient.shape
    _gated_backward[(tokens, triton.cdiv(width, 1024))](gradient, gate_up, width, GELU=gelu, BLOCK=1024)


__all__ = [
    "cross_entropy",
    "decode",
    "gated",
    "gated_backward",
    "product",
    "quantise",
    "quantise_borders",
    "quantise_matrix",
    "quantise_nf4",
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "rotate_backward",
]


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b` in fp32."""
    return torch.mm(a, b, out_dtype=torch.float32)
