"""The kernel that decodes NF4 (arXiv 2305.14314): four bits a weight, and eight for the scale of 64."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from train.fused import reference_ops


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
    quant = tl.load(quants + block, inside, 0).to(tl.int32)
    scale = tl.load(code + quant) * tl.load(scales + block // GROUP, inside, 0.0) + tl.load(mean)
    high = tl.load(table + (byte >> 4).to(tl.int32)) * scale
    low = tl.load(table + (byte & 15).to(tl.int32)) * scale
    to = tl.program_id(0) * 2 * BLOCK + tl.arange(0, 2 * BLOCK)
    place = out + (to // WIDTH).to(tl.int64) * out_row + to % WIDTH
    tl.store(place, tl.interleave(high, low), to < 2 * bytes_)


def decode(weight: Any, out: torch.Tensor) -> None:
    """The values of a double-quantised NF4 weight of bitsandbytes into `out` (out features, in features).

    The rows of `out` may lie apart.
    """
    state, count = weight.quant_state, weight.data.nbytes
    if not state.nested or state.quant_type != "nf4" or state.blocksize != 64:
        return reference_ops.decode(weight, out)
    nested = state.state2
    _decode[(triton.cdiv(count, 1024),)](
        weight.data.view(torch.uint8),
        state.absmax,
        nested.code,
        nested.absmax,
        state.offset,
        state.code,
        out,
        count,
        out.stride(0),
        WIDTH=out.shape[1],
        BLOCK=1024,
        GROUP=nested.blocksize,
        enable_fp_fusion=False,  # rounds as bitsandbytes does
    )
