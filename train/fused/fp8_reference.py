"""Operands of FP8 products (e4m3, arXiv 2209.05433), as formulas: the kernels' reference, and for a CPU.

A row is divided by a scale of its own, which makes its largest value the largest that there is. What the
adapters add to a product stands beside the operands as more columns. It is small and has to be exact, so each
of its numbers is two of e4m3: `high`, and what that one lacks, `low`; of four products only that of two low
ones, 2^-8 of it, is left out:

    [x, high, high, low, 0] [w, high, low, high, 0]^T

Zeros fill the border up to a width with which the product is fast: without them it takes 40 % more.
"""

from __future__ import annotations

from typing import Any

import torch

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448
PADDING = 128  # columns, a block of the product on a Hopper GPU


def border(rank: int) -> int:
    """How many columns the adapters take beside an operand."""
    return -(-3 * rank // PADDING) * PADDING


def quantise(
    x: torch.Tensor, factors: torch.Tensor | None, inner: torch.Tensor, unit: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` (T, K) times `factors` (K), with `inner` (T, rank) over `unit` on its right.

    Returns (T, K + border(rank)) in e4m3, and the scales (T, 1), fp32, by which its rows were divided.
    """
    value = x.float() if factors is None else x.float() * factors
    beside = inner.float() / unit
    top = torch.cat([value, beside], 1).abs().amax(1, keepdim=True)
    scales = torch.where(top > 0, top / LARGEST, 1.0)
    high, low = _parts(beside / scales)
    return torch.cat([(value / scales).to(FP8), _padded(high, high, low)], 1), scales


def quantise_matrix(
    matrix: torch.Tensor, scales: torch.Tensor, values: torch.Tensor, turned: torch.Tensor
) -> None:
    """Put `matrix` (out, in) over its rows' `scales` (out) into `values`, and into `turned` (in, out)."""
    values.copy_((matrix.float() / scales[:, None]).to(FP8))
    turned.copy_(values.T)


def quantise_nf4(weight: Any, scales: torch.Tensor, values: torch.Tensor, turned: torch.Tensor) -> None:
    """`quantise_matrix` of a four-bit weight of bitsandbytes, decoded as it does."""
    from bitsandbytes.functional import dequantize_4bit

    quantise_matrix(dequantize_4bit(weight.data, weight.quant_state), scales, values, turned)


def quantise_borders(
    b: torch.Tensor,
    a: torch.Tensor,
    scales: torch.Tensor,
    units: torch.Tensor,
    of_b: torch.Tensor,
    of_a: torch.Tensor,
) -> None:
    """Put `b` (out, rank) times a unit over `scales` (out) into `of_b` (out, border), and `a` (rank, in)
    times the other of `units` (2, 1) into `of_a` (in, border)."""
    for value, to in ((b.float() * units[0] / scales[:, None], of_b), (a.T.float() * units[1], of_a)):
        high, low = _parts(value)
        to.copy_(_padded(high, low, high))


def _padded(*parts: torch.Tensor) -> torch.Tensor:
    rows, rank = parts[0].shape
    zeros = torch.zeros(rows, border(rank) - 3 * rank, device=parts[0].device).to(FP8)
    return torch.cat([*parts, zeros], 1)


def _parts(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value = value.clamp(-LARGEST, LARGEST)
    high = value.to(FP8)
    return high, (value - high.float()).to(FP8)
