"""The kernels of the gated unit, act(gate) * up, and of its gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from train.fused import plain

_TWICE, _CUBIC = tl.constexpr(2 * plain.ROOT), tl.constexpr(plain.CUBIC)


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
