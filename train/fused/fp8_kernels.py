"""Triton's kernels that make FP8 operands: rows with a scale each, and the adapters' part beside them.

`fp8_reference` has the formulas.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from train.fused import fp8_reference
from train.fused.fp8_reference import LARGEST, border
from train.fused.nf4_kernels import scale_of, stored

_LARGEST = tl.constexpr(LARGEST)


@triton.jit
def _e4m3(value):
    """The byte of the e4m3 number nearest to `value`, ties to even, and that number itself, in fp32.

    By integers, since Triton 3.6's own conversion loses every second pair of numbers in kernels like these.
    """
    size = tl.minimum(tl.abs(value), _LARGEST)
    bits = size.to(tl.int32, bitcast=True)
    # Of the 23 bits of the fraction three stay; below 2^-6 steps are of 2^-9, as those of fp32 above 2^14.
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20
    small = size + 16384.0
    is_small = size < 0.015625
    byte = tl.where(is_small, small.to(tl.int32, bitcast=True) - 0x46800000, bits - (120 << 3))
    nearest = tl.where(is_small, small - 16384.0, (bits << 20).to(tl.float32, bitcast=True))
    negative = value < 0
    return (byte | tl.where(negative, 128, 0)).to(tl.uint8), tl.where(negative, -nearest, nearest)


@triton.jit
def _store_border(place, value, there, RANK: tl.constexpr, MATRIX: tl.constexpr):
    """`value` in three parts: high, high, low for an input; high, low, high for a matrix."""
    high, nearest = _e4m3(value)
    low, _ = _e4m3(tl.minimum(tl.maximum(value, -_LARGEST), _LARGEST) - nearest)
    tl.store(place, high, there)
    tl.store(place + RANK, low if MATRIX else high, there)
    tl.store(place + 2 * RANK, high if MATRIX else low, there)


@triton.jit
def _quantise(
    x,
    factors,
    inner,
    unit,
    out,
    scales,
    x_row,
    inner_row,
    out_row,
    width,
    FACTORS: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BORDER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at, beside = tl.arange(0, BLOCK), tl.arange(0, RANKS)
    inside, there = at < width, beside < RANK
    value = tl.load(x + row * x_row + at, inside, 0.0).to(tl.float32)
    if FACTORS:
        value *= tl.load(factors + at, inside, 0.0)
    top = tl.max(tl.abs(value))
    adapters = tl.zeros((RANKS,), tl.float32)
    if RANK:
        adapters = tl.load(inner + row * inner_row + beside, there, 0.0).to(tl.float32) / tl.load(unit)
        top = tl.maximum(top, tl.max(tl.abs(adapters)))
    scale = tl.where(top > 0, top / _LARGEST, 1.0)
    tl.store(scales + row, scale)
    tl.store(out + row * out_row + at, _e4m3(value / scale)[0], inside)
    if RANK:
        border = out + row * out_row + width
        _store_border(border + beside, adapters / scale, there, RANK, False)
        last = tl.arange(0, BORDER)
        tl.store(border + last, tl.zeros((BORDER,), tl.uint8), last >= 3 * RANK)


def quantise(
    x: torch.Tensor, factors: torch.Tensor | None, inner: torch.Tensor, unit: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` (T, K) times `factors` (K), with `inner` (T, rank) over `unit` on its right, and its rows' scales.

    See `fp8_reference.quantise`.
    """
    tokens, width = x.shape
    rank = inner.shape[1]
    out = torch.empty(tokens, width + border(rank), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _quantise[(tokens,)](
        x,
        scales if factors is None else factors,
        inner if rank else scales,
        unit,
        out.view(torch.uint8),
        scales,
        x.stride(0),
        inner.stride(0) if rank else 0,
        out.stride(0),
        width,
        FACTORS=factors is not None,
        RANK=rank,
        RANKS=max(2, triton.next_power_of_2(rank)),
        BORDER=border(rank),
        BLOCK=block,
        num_warps=8 if block > 4096 else 4,
    )
    return out, scales


@triton.jit
def _quantise_matrix(
    matrix, scales, values, turned, matrix_row, values_row, turned_row, rows, columns, SIDE: tl.constexpr
):
    row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    scale = tl.load(scales + row, row < rows, 1.0)
    place = matrix + row.to(tl.int64)[:, None] * matrix_row + column[None, :]
    value, _ = _e4m3(tl.load(place, inside, 0.0).to(tl.float32) / scale[:, None])
    tl.store(values + row.to(tl.int64)[:, None] * values_row + column[None, :], value, inside)
    tl.store(turned + column.to(tl.int64)[None, :] * turned_row + row[:, None], value, inside)


def quantise_matrix(
    matrix: torch.Tensor, scales: torch.Tensor, values: torch.Tensor, turned: torch.Tensor
) -> None:
    """Put `matrix` (out, in) over its rows' `scales` (out) into `values`, and into `turned` (in, out)."""
    rows, columns = matrix.shape
    grid = (triton.cdiv(rows, 64), triton.cdiv(columns, 64))
    strides = (matrix.stride(0), values.stride(0), turned.stride(0))
    _quantise_matrix[grid](matrix, scales, *_bytes(values, turned), *strides, rows, columns, SIDE=64)


@triton.jit
def _quantise_nf4(
    packed,
    quants,
    code,
    absmax,
    mean,
    table,
    scales,
    values,
    turned,
    values_row,
    turned_row,
    rows,
    columns,
    GROUP: tl.constexpr,
    TYPE: tl.constexpr,
    SIDE: tl.constexpr,
):
    row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    here = (row < rows)[:, None]
    row = row.to(tl.int64)
    block = row * (columns // 64) + tl.program_id(1)  # of 64 weights, which share a scale
    scale = scale_of(block, row < rows, quants, code, absmax, mean, GROUP)
    byte = tl.load(packed + block[:, None] * 32 + tl.arange(0, 32)[None, :], here, 0).to(tl.int32)
    high = tl.load(table + (byte >> 4)) * scale[:, None]
    low = tl.load(table + (byte & 15)) * scale[:, None]
    decoded = tl.interleave(high, low).to(TYPE).to(tl.float32)
    value, _ = _e4m3(decoded / tl.load(scales + row, row < rows, 1.0)[:, None])
    column = tl.program_id(1) * 64 + tl.arange(0, 64)
    tl.store(values + row[:, None] * values_row + column[None, :], value, here)
    tl.store(turned + column.to(tl.int64)[None, :] * turned_row + row[:, None], value, here)


_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def quantise_nf4(weight: Any, scales: torch.Tensor, values: torch.Tensor, turned: torch.Tensor) -> None:
    """`quantise_matrix` of a double-quantised NF4 weight of bitsandbytes, without the decoded matrix."""
    state, parts, (rows, columns) = weight.quant_state, stored(weight), values.shape
    if parts is None or columns % 64:
        return fp8_reference.quantise_nf4(weight, scales, values, turned)
    _quantise_nf4[(triton.cdiv(rows, 64), columns // 64)](
        *parts,
        scales,
        *_bytes(values, turned),
        values.stride(0),
        turned.stride(0),
        rows,
        columns,
        GROUP=state.state2.blocksize,
        TYPE=_TYPES[state.dtype],
        SIDE=64,
        enable_fp_fusion=False,  # rounds as bitsandbytes does
    )


@triton.jit
def _borders(
    b,
    a,
    scales,
    units,
    of_b,
    of_a,
    b_row,
    a_row,
    of_b_row,
    of_a_row,
    rows,
    columns,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rank = tl.arange(0, RANKS)
    number = tl.program_id(0)
    of_rows = tl.cdiv(rows, BLOCK)
    if number < of_rows:
        row = number * BLOCK + tl.arange(0, BLOCK)
        there = (row < rows)[:, None] & (rank < RANK)[None, :]
        value = tl.load(b + row[:, None] * b_row + rank[None, :], there, 0.0).to(tl.float32)
        value *= tl.load(units) / tl.load(scales + row, row < rows, 1.0)[:, None]
        _store_border(of_b + row.to(tl.int64)[:, None] * of_b_row + rank[None, :], value, there, RANK, True)
    else:
        row = (number - of_rows) * BLOCK + tl.arange(0, BLOCK)
        there = (row < columns)[:, None] & (rank < RANK)[None, :]
        value = tl.load(a + rank[None, :] * a_row + row[:, None], there, 0.0).to(tl.float32)
        value *= tl.load(units + 1)
        _store_border(of_a + row.to(tl.int64)[:, None] * of_a_row + rank[None, :], value, there, RANK, True)


def quantise_borders(
    b: torch.Tensor,
    a: torch.Tensor,
    scales: torch.Tensor,
    units: torch.Tensor,
    of_b: torch.Tensor,
    of_a: torch.Tensor,
) -> None:
    """Put `b` (out, rank) times a unit over `scales` (out) into `of_b` (out, border), and `a` (rank, in)
    times the other of `units` (2, 1) into `of_a` (in, border), but for the zeros at their ends."""
    rank = b.shape[1]
    rows, columns = len(b), a.shape[1]
    grid = (triton.cdiv(rows, 128) + triton.cdiv(columns, 128),)
    strides = (b.stride(0), a.stride(0), of_b.stride(0), of_a.stride(0))
    sizes = {"RANK": rank, "RANKS": triton.next_power_of_2(rank), "BLOCK": 128}
    _borders[grid](b, a, scales, units, *_bytes(of_b, of_a), *strides, rows, columns, **sizes)


def _bytes(*parts: torch.Tensor) -> list[torch.Tensor]:
    return [part.view(torch.uint8) for part in parts]
