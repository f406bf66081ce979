"""Causal attention of packed rows with capped scores, for Gemma 2 (arXiv 2408.00118, section 2), in Triton.

Neither cuDNN's plans nor PyTorch's FlashAttention cap scores. This is FlashAttention 2's algorithm (arXiv
2307.08691) over all rows at once: from which key on a token looks, and up to which token a key is seen, are
lists, so that a program knows the blocks that it needs. Sums are in the same order each time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from train.fused.reference_ops import Heads


@triton.jit
def _block(base, row, inside, stride, head, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One head of some rows (rows, BLOCK)."""
    at = tl.arange(0, BLOCK)[None]
    place = base + row[:, None].to(tl.int64) * stride + head * WIDTH + at
    return tl.load(place, inside[:, None] & (at < WIDTH), 0.0)


@triton.jit
def _capped(query, key, scale, cap):
    """Capped scores (queries, keys), and the share of their gradient that goes on."""
    inner = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale / cap)
    tangent = 2.0 / (1.0 + tl.exp(-2.0 * inner)) - 1.0
    return cap * tangent, (1.0 - tangent * tangent) * scale


@triton.jit
def _seen(row, column, first, tokens):
    """Whether a token (rows) sees a key (columns): one of its own row, not later, in its window."""
    low = tl.load(first + row, row < tokens, 0)
    return (column[None] >= low[:, None]) & (column[None] <= row[:, None]) & (row[:, None] < tokens)


@triton.jit
def _forward(
    q,
    k,
    v,
    out,
    lse,
    first,
    tokens,
    row_stride,
    queries,
    group,
    scale,
    cap,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    head, start = tl.program_id(1), tl.program_id(0) * ROWS
    row = start + tl.arange(0, ROWS)
    query = _block(q, row, row < tokens, row_stride, head, WIDTH, BLOCK)
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    made = tl.zeros([ROWS, BLOCK], tl.float32)
    begin = tl.load(first + start) // ROWS * ROWS
    for at in range(begin, start + ROWS, ROWS):
        column = at + tl.arange(0, ROWS)
        key = _block(k, column, column < tokens, row_stride, head // group, WIDTH, BLOCK)
        value = _block(v, column, column < tokens, row_stride, head // group, WIDTH, BLOCK)
        scores, _ = _capped(query, key, scale, cap)
        seen = _seen(row, column, first, tokens)
        highest = tl.maximum(top, tl.max(tl.where(seen, scores, -1e30), axis=1))
        share = tl.where(seen, tl.exp(scores - highest[:, None]), 0.0)
        before = tl.exp(top - highest)
        total = total * before + tl.sum(share, axis=1)
        made = made * before[:, None] + tl.dot(share.to(value.dtype), value, input_precision="ieee")
        top = highest
    columns = tl.arange(0, BLOCK)[None]
    place = out + row[:, None].to(tl.int64) * queries * WIDTH + head * WIDTH + columns
    tl.store(place, made / total[:, None], (row < tokens)[:, None] & (columns < WIDTH))
    tl.store(lse + row.to(tl.int64) * queries + head, top + tl.log(total), row < tokens)


@triton.jit
def _of_scores(query, key, value, given, row, column, lse, delta, first, tokens, queries, head, scale, cap):
    """The shares (queries, keys) of attention and the gradient of the products of queries and keys."""
    scores, goes_on = _capped(query, key, scale, cap)
    total = tl.load(lse + row.to(tl.int64) * queries + head, row < tokens, 0.0)
    share = tl.where(_seen(row, column, first, tokens), tl.exp(scores - total[:, None]), 0.0)
    inner = tl.load(delta + row.to(tl.int64) * queries + head, row < tokens, 0.0)
    of_share = tl.dot(given, tl.trans(value), input_precision="ieee")
    return share, share * (of_share - inner[:, None]) * goes_on


@triton.jit
def _backward_queries(
    q,
    k,
    v,
    gradient,
    lse,
    delta,
    of_q,
    first,
    tokens,
    row_stride,
    queries,
    group,
    scale,
    cap,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    head, start = tl.program_id(1), tl.program_id(0) * ROWS
    row = start + tl.arange(0, ROWS)
    query = _block(q, row, row < tokens, row_stride, head, WIDTH, BLOCK)
    given = _block(gradient, row, row < tokens, queries * WIDTH, head, WIDTH, BLOCK)
    made = tl.zeros([ROWS, BLOCK], tl.float32)
    for at in range(tl.load(first + start) // ROWS * ROWS, start + ROWS, ROWS):
        column = at + tl.arange(0, ROWS)
        key = _block(k, column, column < tokens, row_stride, head // group, WIDTH, BLOCK)
        value = _block(v, column, column < tokens, row_stride, head // group, WIDTH, BLOCK)
        _, of_scores = _of_scores(
            query, key, value, given, row, column, lse, delta, first, tokens, queries, head, scale, cap
        )
        made += tl.dot(of_scores.to(key.dtype), key, input_precision="ieee")
    columns = tl.arange(0, BLOCK)[None]
    place = of_q + row[:, None].to(tl.int64) * queries * WIDTH + head * WIDTH + columns
    tl.store(place, made, (row < tokens)[:, None] & (columns < WIDTH))


@triton.jit
def _backward_keys(
    q,
    k,
    v,
    gradient,
    lse,
    delta,
    of_k,
    of_v,
    first,
    last,
    tokens,
    row_stride,
    queries,
    group,
    scale,
    cap,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    head, start = tl.program_id(1), tl.program_id(0) * ROWS
    column = start + tl.arange(0, ROWS)
    key = _block(k, column, column < tokens, row_stride, head, WIDTH, BLOCK)
    value = _block(v, column, column < tokens, row_stride, head, WIDTH, BLOCK)
    made_k, made_v = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    end = tl.load(last + tl.minimum(start + ROWS, tokens) - 1) + 1
    for number in range(group):
        of = head * group + number
        for at in range(start, end, ROWS):
            row = at + tl.arange(0, ROWS)
            query = _block(q, row, row < tokens, row_stride, of, WIDTH, BLOCK)
            given = _block(gradient, row, row < tokens, queries * WIDTH, of, WIDTH, BLOCK)
            share, of_scores = _of_scores(
                query, key, value, given, row, column, lse, delta, first, tokens, queries, of, scale, cap
            )
            made_v += tl.dot(tl.trans(share.to(given.dtype)), given, input_precision="ieee")
            made_k += tl.dot(tl.trans(of_scores.to(query.dtype)), query, input_precision="ieee")
    columns, inside = tl.arange(0, BLOCK)[None], (column < tokens)[:, None]
    place = column[:, None].to(tl.int64) * (queries // group) * WIDTH + head * WIDTH + columns
    tl.store(of_k + place, made_k, inside & (columns < WIDTH))
    tl.store(of_v + place, made_v, inside & (columns < WIDTH))


class Capped:
    """What `cudnn_attention.Plan` is, for heads whose scores are capped."""

    def __init__(self, heads: Heads) -> None:
        self.heads = heads

    def forward(self, qkv: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the heads' results (T, query, head) and their log sums (T, query), fp32.

        `starts` (rows + 1, int32) are a batch's `cu_seq_lens`.
        """
        heads = self.heads
        out = qkv.new_empty(len(qkv), heads.query, heads.head)
        lse = torch.empty(out.shape[:2], dtype=torch.float32, device=qkv.device)
        first, _ = _bounds(heads, starts, len(qkv))
        grid, given, sizes = _launch(qkv, heads, heads.query)
        _forward[grid](*heads.split(qkv), out, lse, first, *given, **sizes)
        return out, lse

    def backward(
        self,
        gradient: torch.Tensor,
        qkv: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        starts: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The gradients of queries, keys and values (T, heads, head) from that of `out`."""
        heads = self.heads
        first, last = _bounds(heads, starts, len(qkv))
        gradient = gradient.contiguous()
        delta = (gradient.float() * out.view_as(gradient)).view(len(qkv), heads.query, heads.head).sum(2)
        counts = (heads.query, heads.key, heads.key)
        of_q, of_k, of_v = (qkv.new_empty(len(qkv), count, heads.head) for count in counts)
        inputs = (*heads.split(qkv), gradient, lse, delta)
        grid, given, sizes = _launch(qkv, heads, heads.query)
        _backward_queries[grid](*inputs, of_q, first, *given, **sizes)
        grid, given, sizes = _launch(qkv, heads, heads.key)
        _backward_keys[grid](*inputs, of_k, of_v, first, last, *given, **sizes)
        return of_q, of_k, of_v


def _bounds(heads: Heads, starts: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first key that each token sees, and the last token that sees it as a key (T, int32)."""
    at = torch.arange(tokens, dtype=torch.int32, device=starts.device)
    row = torch.searchsorted(starts, at, right=True)
    first, last = starts[row - 1], starts[row] - 1
    if heads.window is None:
        return first, last
    return torch.maximum(first, at - heads.window + 1), torch.minimum(last, at + heads.window - 1)


def _launch(
    qkv: torch.Tensor, heads: Heads, count: int
) -> tuple[tuple[int, int], tuple[float, ...], dict[str, int]]:
    """The grid for so many heads, what all kernels are given, and their sizes."""
    assert heads.softcap is not None
    block = max(16, triton.next_power_of_2(heads.head))
    rows = 64 if block <= 128 else 32
    given = (len(qkv), qkv.stride(0), heads.query, heads.query // heads.key, heads.scale, heads.softcap)
    sizes = {"WIDTH": heads.head, "BLOCK": block, "ROWS": rows, "num_warps": 4}
    return (triton.cdiv(len(qkv), rows), count), given, sizes
