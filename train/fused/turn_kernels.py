"""The kernel that turns queries and keys by their positions, and adds the adapter's part on the way."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from train.fused.gate_kernels import padded, plus


@triton.jit
def _turn(
    q,
    k,
    v,
    out,
    inner,
    b,
    cos,
    sin,
    tokens,
    q_row,
    k_row,
    v_row,
    out_row,
    queries,
    keys,
    rank,
    half,
    sign,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    RANK: tl.constexpr,
):
    """Some heads of some rows: of q, k or v, from where they lie to their place in `out`; v isn't turned."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, HALF)
    angles = (row[:, None] < tokens) & (at < half)
    c = tl.load(cos + row[:, None] * half + at, angles, 1.0) - 1.0
    s = tl.load(sin + row[:, None] * half + at, angles, 0.0) * sign
    for number in range(HEADS):
        head = tl.program_id(1) * HEADS + number
        source, source_row, first_head, turned, width = q, q_row, 0, 1.0, half
        if head >= queries:
            source, source_row, first_head = k, k_row, queries
        if head >= queries + keys:
            source, source_row, first_head, turned = v, v_row, queries + keys, 0.0
        if head >= queries + 2 * keys:
            width = 0  # there is no such head
        inside = (row[:, None] < tokens) & (at < width)
        place = source + row[:, None] * source_row + (head - first_head) * 2 * half + at
        first = tl.load(place, inside, 0.0).to(tl.float32)
        second = tl.load(place + half, inside, 0.0).to(tl.float32)
        if RANK:
            column = head * 2 * half + at
            first = plus(first, inner, b, row, column, tokens, head * 2 * half + width, rank, RANK)
            second = plus(
                second, inner, b, row, column + half, tokens, head * 2 * half + half + width, rank, RANK
            )
        to = out + row[:, None] * out_row + head * 2 * half + at
        tl.store(to, first + turned * (first * c - second * s), inside)
        tl.store(to + half, second + turned * (second * c + first * s), inside)


def rotate(qkv: torch.Tensor, heads: Any, angles: Any, inner: torch.Tensor, b: torch.Tensor) -> None:
    """Add the adapter's part to `qkv` (T, (query + 2 key) head), then turn queries and keys, in place.

    That part is `inner` (T, rank) times `b` (as wide as `qkv`, rank) transposed. The angles' cosine and sine
    of each token's position (T, head / 2) are fp32.
    """
    _launch_turn(heads.split(qkv), qkv, heads, angles, inner, b, inner.shape[1], 1.0)


def rotate_backward(parts: tuple[torch.Tensor, ...], heads: Any, angles: Any, out: torch.Tensor) -> None:
    """Gradients of turned queries and keys, and of values (T, heads, head), to those of `rotate`'s `qkv`."""
    _launch_turn(parts, out, heads, angles, out, out, 0, -1.0)


def _launch_turn(
    parts: tuple[torch.Tensor, ...],
    out: torch.Tensor,
    heads: Any,
    angles: Any,
    inner: torch.Tensor,
    b: torch.Tensor,
    rank: int,
    sign: float,
) -> None:
    half, rows = heads.head // 2, [part.stride(0) for part in (*parts, out)]
    count = heads.query + 2 * heads.key
    _turn[(triton.cdiv(len(out), 64), triton.cdiv(count, 8))](
        *parts,
        out,
        inner,
        b,
        angles.cos,
        angles.sin,
        len(out),
        *rows,
        heads.query,
        heads.key,
        rank,
        half,
        sign,
        ROWS=64,
        HEADS=8,
        HALF=triton.next_power_of_2(half),
        RANK=padded(rank),
    )
