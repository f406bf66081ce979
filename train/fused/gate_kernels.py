"""Kernels that add an adapter's part to a product's result where the next step reads it anyway."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from train.fused import plain

_TWICE, _SLOPE = tl.constexpr(2 * plain.ROOT), tl.constexpr(plain.SLOPE)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _activate(gate, GELU: tl.constexpr):
    """The activation and its derivative."""
    if GELU:  # by the tangent: 0.5 (1 + tanh z) is sigmoid 2z
        share = _sigmoid((gate + gate * gate * gate * _SLOPE) * _TWICE)
        inner = (1.0 + gate * gate * (3.0 * _SLOPE)) * _TWICE
        return gate * share, share + gate * share * (1.0 - share) * inner
    share = _sigmoid(gate)
    return gate * share, share * (1.0 + gate * (1.0 - share))


@triton.jit
def plus(tile, inner, b, row, column, tokens, end, rank, RANK: tl.constexpr):
    """`tile`, some rows and columns, plus `inner` (T, rank) times `b` (width, rank) transposed, in fp32."""
    STEP: tl.constexpr = min(RANK, 64)  # what fits beside the tile
    for start in tl.static_range(0, RANK, STEP):
        at = start + tl.arange(0, STEP)
        left = tl.load(inner + row[:, None] * rank + at, (row[:, None] < tokens) & (at < rank), 0.0)
        right = tl.load(b + column[:, None] * rank + at, (column[:, None] < end) & (at < rank), 0.0)
        # Rounded, as PEFT rounds it: half as much to be moved from the product's layout to the tile's.
        tile += tl.dot(left, right.T).to(inner.dtype.element_ty)
    return tile


@triton.jit
def _adapted(y, inner, b, row, column, tokens, end, rank, width, RANK: tl.constexpr):
    """Some rows and columns of `y` (T, width) with the adapter's part."""
    inside = (row[:, None] < tokens) & (column < end)
    tile = tl.load(y + row[:, None] * width + column, inside, 0.0).to(tl.float32)
    if RANK:
        tile = plus(tile, inner, b, row, column, tokens, end, rank, RANK)
    return tile


def padded(rank: int) -> int:
    """What `tl.dot` can take; 0 where there are no adapters."""
    return max(16, triton.next_power_of_2(rank)) if rank else 0


@triton.jit
def _add_product(
    onto, inner, b, out, tokens, width, rank, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tile = _adapted(onto, inner, b, row, column, tokens, width, rank, width, RANK)
    tl.store(out + row[:, None] * width + column, tile, (row[:, None] < tokens) & (column < width))


def add_product(onto: torch.Tensor, inner: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`onto` (T, width) plus `inner` (T, rank) times `b` (width, rank) transposed."""
    (tokens, width), rank = onto.shape, inner.shape[1]
    out = torch.empty_like(onto)
    grid = (triton.cdiv(tokens, 64), triton.cdiv(width, 128))
    _add_product[grid](onto, inner, b, out, tokens, width, rank, ROWS=64, COLUMNS=128, RANK=padded(rank))
    return out


@triton.jit
def _gates(
    gate_up, inner, b, tokens, width, rank, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr
):
    """This program's rows and columns, which of them there are, and gate and up with the adapter's part."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    both = 2 * width
    inside = (row[:, None] < tokens) & (column < width)
    gate = _adapted(gate_up, inner, b, row, column, tokens, width, rank, both, RANK)
    up = _adapted(gate_up, inner, b, row, column + width, tokens, both, rank, both, RANK)
    return row, column, inside, gate, up


@triton.jit
def _gated(
    gate_up,
    inner,
    b,
    out,
    tokens,
    width,
    rank,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    row, column, inside, gate, up = _gates(gate_up, inner, b, tokens, width, rank, ROWS, COLUMNS, RANK)
    active, _ = _activate(gate, GELU)
    tl.store(out + row[:, None] * width + column, active * up, inside)


def gated(gate_up: torch.Tensor, inner: torch.Tensor, b: torch.Tensor, gelu: bool) -> torch.Tensor:
    """`act(gate) * up` (T, width): the halves of `gate_up` (T, 2 width) plus `inner` times `b` transposed.

    `inner` (T, rank) and `b` (2 width, rank) are the adapter's part: added here, it costs no pass of its own.
    """
    tokens, width, rank = len(gate_up), gate_up.shape[1] // 2, inner.shape[1]
    out = gate_up.new_empty(tokens, width)
    grid = (triton.cdiv(tokens, 32), triton.cdiv(width, 128))
    _gated[grid](
        gate_up, inner, b, out, tokens, width, rank, GELU=gelu, ROWS=32, COLUMNS=128, RANK=padded(rank)
    )
    return out


@triton.jit
def _gated_backward(
    slope,
    gate_up,
    inner,
    b,
    tokens,
    width,
    rank,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    row, column, inside, gate, up = _gates(gate_up, inner, b, tokens, width, rank, ROWS, COLUMNS, RANK)
    slopes = slope + row[:, None] * width + column
    given = tl.load(slopes, inside, 0.0).to(tl.float32)
    active, derivative = _activate(gate, GELU)
    gates = gate_up + row[:, None] * 2 * width + column
    tl.store(gates, given * up * derivative, inside)
    tl.store(gates + width, given * active, inside)
    tl.store(slopes, active * up, inside)


def gated_backward(
    slope: torch.Tensor, gate_up: torch.Tensor, inner: torch.Tensor, b: torch.Tensor, gelu: bool
) -> None:
    """Put the gradient of `gate_up` in its place, and `gated(...)` in that of `slope`, its gradient."""
    (tokens, width), rank = slope.shape, inner.shape[1]
    grid = (triton.cdiv(tokens, 32), triton.cdiv(width, 128))
    _gated_backward[grid](
        slope, gate_up, inner, b, tokens, width, rank, GELU=gelu, ROWS=32, COLUMNS=128, RANK=padded(rank)
    )
