"""The kernel that turns queries and keys by their positions, and norms their heads where a model does.

`reference_ops.rotate` and `rotate_backward` are the formulas. One program has one head of some rows: it turns
the halves (i, half + i) of the columns that are turned, and copies those that aren't.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from train.fused.reference_ops import HeadNorms, Heads

NO_NORM, NORM, NORM_BACKWARD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _load(place, half, at, inside, also, beside, REST: tl.constexpr):
    """The first and second half of what is turned, and the rest, in fp32."""
    first = tl.load(place + at, inside, 0.0).to(tl.float32)
    second = tl.load(place + half + at, inside, 0.0).to(tl.float32)
    rest = first
    if REST:
        rest = tl.load(place + 2 * half + also, beside, 0.0).to(tl.float32)
    return first, second, rest


@triton.jit
def _sum(first, second, rest, REST: tl.constexpr):
    total = tl.sum(first + second, axis=1)
    if REST:
        total += tl.sum(rest, axis=1)
    return total[:, None]


@triton.jit
def _normal(first, second, rest, width, eps, REST: tl.constexpr):
    """The parts over their root mean square, and its reciprocal."""
    rstd = tl.rsqrt(_sum(first * first, second * second, rest * rest, REST) / width + eps)
    return first * rstd, second * rstd, rest * rstd, rstd


@triton.jit
def _rotate(
    q,
    k,
    v,
    out,
    q_weight,
    k_weight,
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
    rest_width,
    eps,
    offset,
    sign,
    MODE: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    head, at, also = tl.program_id(1), tl.arange(0, HALF)[None], tl.arange(0, REST if REST else 1)[None]
    inside, beside = (row < tokens) & (at < half), (row < tokens) & (also < rest_width)
    width = 2 * half + rest_width
    source, source_row, first_head, turned, weight = q, q_row, 0, 1.0, q_weight
    if head >= queries:
        source, source_row, first_head, weight = k, k_row, queries, k_weight
    if head >= queries + keys:
        source, source_row, first_head, turned = v, v_row, queries + keys, 0.0
    place = source + row * source_row + (head - first_head) * width
    to = out + row * out_row + head * width
    first, second, rest = _load(place, half, at, inside, also, beside, REST)
    if MODE != NO_NORM:
        scale, scale_2, scale_rest = _load(weight, half, at, at < half, also, also < rest_width, REST)
        scale, scale_2, scale_rest = scale + offset, scale_2 + offset, scale_rest + offset
    if MODE == NORM:  # noqa: SIM102 (known when it is compiled)
        if head < queries + keys:
            first, second, rest, _ = _normal(first, second, rest, width, eps, REST)
            first, second, rest = first * scale, second * scale_2, rest * scale_rest
    c = turned * (tl.load(cos + row * half + at, inside, 1.0) - 1.0)
    s = turned * sign * tl.load(sin + row * half + at, inside, 0.0)
    first, second = first + first * c - second * s, second + second * c + first * s
    if MODE == NORM_BACKWARD:  # noqa: SIM102
        if head < queries + keys:
            normal, normal_2, normal_rest = _load(to, half, at, inside, also, beside, REST)
            normal, normal_2, normal_rest, rstd = _normal(normal, normal_2, normal_rest, width, eps, REST)
            first, second, rest = first * scale, second * scale_2, rest * scale_rest
            inner = _sum(first * normal, second * normal_2, rest * normal_rest, REST) / width
            first, second = rstd * (first - normal * inner), rstd * (second - normal_2 * inner)
            rest = rstd * (rest - normal_rest * inner)
    tl.store(to + at, first, inside)
    tl.store(to + half + at, second, inside)
    if REST:
        tl.store(to + 2 * half + also, rest, beside)


def rotate(qkv: torch.Tensor, heads: Heads, angles: Any, norms: HeadNorms | None, out: torch.Tensor) -> None:
    """Put `qkv` (T, (query + 2 key) head) into `out`, queries and keys normed by head and turned.

    The angles' cosine and sine of each token's position, fp32, are (T, up to head / 2): of narrower ones only
    the first columns of a head are turned (a partial rotary). Without norms `out` may be `qkv`.
    """
    count = heads.query + (1 if out is qkv else 2) * heads.key
    _launch(heads.split(qkv), out, heads, angles, norms, count, 1.0)


def rotate_backward(
    parts: tuple[torch.Tensor, ...], heads: Heads, angles: Any, norms: HeadNorms | None, out: torch.Tensor
) -> None:
    """Gradients of turned queries and keys, and of values (T, heads, head), to those of `rotate`'s `qkv`.

    With norms, `out` holds that `qkv` before.
    """
    _launch(parts, out, heads, angles, norms, heads.query + 2 * heads.key, -1.0)


def _launch(
    parts: tuple[torch.Tensor, ...],
    out: torch.Tensor,
    heads: Heads,
    angles: Any,
    norms: HeadNorms | None,
    count: int,
    sign: float,
) -> None:
    half = angles.cos.shape[1]
    rest, rows = heads.head - 2 * half, 32 if norms is None else 16
    weights = norms.weights if norms else (angles.cos, angles.cos)  # which nothing reads
    mode = NO_NORM if norms is None else NORM if sign > 0 else NORM_BACKWARD
    _rotate[(triton.cdiv(len(out), rows), count)](
        *parts,
        out,
        *weights,
        angles.cos,
        angles.sin,
        len(out),
        *(part.stride(0) for part in (*parts, out)),
        heads.query,
        heads.key,
        half,
        rest,
        norms.eps if norms else 0.0,
        norms.offset if norms else 0.0,
        sign,
        MODE=mode,
        ROWS=rows,
        HALF=triton.next_power_of_2(half),
        REST=triton.next_power_of_2(rest) if rest else 0,
    )
