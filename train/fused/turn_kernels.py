"""The kernel that turns queries and keys by their positions."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _turn(
    q,
    k,
    v,
    out,
    cos,
    sin,
    tokens,
    q_row,
    k_row,
    v_row,
    out_row,
    queries,
    keys,
    half,
    sign,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
):
    """One head of some rows: of q, k or v, from where it lies to its place in `out`; v isn't turned."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head, at = tl.program_id(1), tl.arange(0, HALF)
    inside = (row[:, None] < tokens) & (at < half)
    source, source_row, first_head, turned = q, q_row, 0, 1.0
    if head >= queries:
        source, source_row, first_head = k, k_row, queries
    if head >= queries + keys:
        source, source_row, first_head, turned = v, v_row, queries + keys, 0.0
    place = source + row[:, None] * source_row + (head - first_head) * 2 * half + at
    first = tl.load(place, inside, 0.0).to(tl.float32)
    second = tl.load(place + half, inside, 0.0).to(tl.float32)
    c = turned * (tl.load(cos + row[:, None] * half + at, inside, 1.0) - 1.0)
    s = turned * sign * tl.load(sin + row[:, None] * half + at, inside, 0.0)
    to = out + row[:, None] * out_row + head * 2 * half + at
    tl.store(to, first + first * c - second * s, inside)
    tl.store(to + half, second + second * c + first * s, inside)


def rotate(qkv: torch.Tensor, heads: Any, angles: Any) -> None:
    """Turn queries and keys of `qkv` (T, (query + 2 key) head), in place.

    The angles' cosine and sine of each token's position (T, head / 2) are fp32.
    """
    _launch_turn(heads.split(qkv), qkv, heads, angles, heads.query + heads.key, 1.0)


def rotate_backward(parts: tuple[torch.Tensor, ...], heads: Any, angles: Any, out: torch.Tensor) -> None:
    """Gradients of turned queries and keys, and of values (T, heads, head), to those of `rotate`'s `qkv`."""
    _launch_turn(parts, out, heads, angles, heads.query + 2 * heads.key, -1.0)


def _launch_turn(
    parts: tuple[torch.Tensor, ...], out: torch.Tensor, heads: Any, angles: Any, count: int, sign: float
) -> None:
    half, rows = heads.head // 2, [part.stride(0) for part in (*parts, out)]
    _turn[(triton.cdiv(len(out), 32), count)](
        *parts,
        out,
        angles.cos,
        angles.sin,
        len(out),
        *rows,
        heads.query,
        heads.key,
        half,
        sign,
        ROWS=32,
        HALF=triton.next_power_of_2(half),
    )
