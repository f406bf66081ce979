"""The kernel that decodes NF4 (arXiv 2305.14314): four bits a weight, and eight for the scale of 64."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from train.fused import reference_ops


@triton.jit
def scale_of(block, inside, quants, code, scales, mean, GROUP: tl.constexpr):
    """The scale of each block of 64 weights, from its eight bits and the scale of GROUP blocks."""
    quant = tl.load(quants + block, inside, 0).to(tl.int32)
    return tl.load(code + quant) * tl.load(scales + block // GROUP, inside, 0.0) + tl.load(mean)


def stored(weight: Any) -> tuple[torch.Tensor, ...] | None:
    """What a double-quantised NF4 weight of bitsandbytes is stored as, in the kernels' order: bytes of two
    weights, blocks' scales, those scales' code, scales and mean, NF4's table. None for another kind.
    """
    state = weight.quant_state
    if not state.nested or state.quant_type != "nf4" or state.blocksize != 64:
        return None
    nested = state.state2
    packed = weight.data.view(torch.uint8)
    return packed, state.absmax, nested.code, nested.absmax, state.offset, state.code


@triton.jit
def _decode(
    packed,
    quants,
    code,
    scales,
    mean,
    table,
    out,
    bytes_,
    out_row,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < bytes_
    byte = tl.load(packed + at, inside, 0)
    block = at // 32  # of 64 weights
    scale = scale_of(block, inside, quants, code, scales, mean, GROUP)
    high = tl.load(table + (byte >> 4).to(tl.int32)) * scale
    low = tl.load(table + (byte & 15).to(tl.int32)) * scale
    to = tl.program_id(0) * 2 * BLOCK + tl.arange(0, 2 * BLOCK)
    place = out + (to // WIDTH).to(tl.int64) * out_row + to % WIDTH
    tl.store(place, tl.interleave(high, low), to < 2 * bytes_)


def decode(weight: Any, out: torch.Tensor) -> None:
    """The values of a double-quantised NF4 weight of bitsandbytes into `out` (out features, in features).

    The rows of `out` may lie apart.
    """
    count, parts = weight.data.nbytes, stored(weight)
    if parts is None:
        return reference_ops.decode(weight, out)
    _decode[(triton.cdiv(count, 1024),)](
        *parts,
        out,
        count,
        out.stride(0),
        WIDTH=out.shape[1],
        BLOCK=1024,
        GROUP=weight.quant_state.state2.blocksize,
        enable_fp_fusion=False,  # rounds as bitsandbytes does
    )
