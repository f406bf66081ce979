"""The formulas between a decoder layer's matrix products, for the CPU and as the kernels' reference.

T is the number of tokens. RMSNorm: arXiv 1910.07467; gated units: arXiv 2002.05202; GELU by its tangent
formula: arXiv 1606.08415; rotation by halves: arXiv 2104.09864 as in transformers' `apply_rotary_pos_emb`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from train.fused.fp8_reference import (  # noqa: F401 (a part of these operations)
    quantise,
    quantise_borders,
    quantise_matrix,
    quantise_nf4,
)

ROOT, CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU's tangent formula


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    border: int = 0,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x` (T, width) over its root mean square, times `weight + offset`, plus `residual` if there is one.

    The result has as many columns more as `border`, which aren't written.
    """
    out = x.new_empty(len(x), x.shape[1] + border)
    made = _normal(x, eps)[0] * (weight.float() + offset)
    out[:, : x.shape[1]] = made if residual is None else residual + made
    return out


def _normal(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return x.float() * rstd, rstd


def rms_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    eps: float,
    offset: float,
) -> torch.Tensor:
    """The gradient of `x` (T, width) from that of `rms_norm(x)`; plus `residual`, in whose place it goes."""
    made = _norm_backward(gradient, x, weight, eps, offset)
    return made.to(x.dtype) if residual is None else residual.copy_(residual + made)


def _norm_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
) -> torch.Tensor:
    normal, rstd = _normal(x, eps)
    given = gradient.float() * (weight.float() + offset)
    return rstd * (given - normal * (given * normal).mean(-1, keepdim=True))


def gated(gate_up: torch.Tensor, gelu: bool) -> torch.Tensor:
    """`act(gate) * up` (T, width) of the halves of `gate_up` (T, 2 width)."""
    gate, up = gate_up.chunk(2, dim=1)
    active = functional.gelu(gate, approximate="tanh") if gelu else functional.silu(gate)
    return active * up


def gated_backward(gradient: torch.Tensor, gate_up: torch.Tensor, gelu: bool) -> None:
    """From the `gradient` of `gated(...)`, put that of `gate_up` in its place, and `gated(...)` in its."""
    gate, up = gate_up.chunk(2, dim=1)
    if gelu:
        share = torch.sigmoid(2 * ROOT * (gate + CUBIC * gate**3))  # 0.5 (1 + tanh z) is sigmoid 2z
        derivative = share + gate * share * (1 - share) * 2 * ROOT * (1 + 3 * CUBIC * gate**2)
    else:
        share = torch.sigmoid(gate)
        derivative = share * (1 + gate * (1 - share))
    active = gate * share
    made = active * up
    gate_up.copy_(torch.cat([gradient * up * derivative, gradient * active], dim=1))
    gradient.copy_(made)


def rotate(qkv: torch.Tensor, heads: Heads, angles: Any, norms: HeadNorms | None, out: torch.Tensor) -> None:
    """Put `qkv` (T, (query + 2 key) head) into `out`, queries and keys normed by head and turned.

    The angles' cosine and sine of each token's position, fp32, are (T, up to head / 2): of narrower ones only
    the first columns of a head are turned (a partial rotary). Without norms `out` may be `qkv`.
    """
    parts, places = heads.split(qkv), heads.split(out)
    for number, (part, place) in enumerate(zip(parts, places, strict=True)):
        if number == 2:
            place.copy_(part)
        elif norms is None:
            place.copy_(_turned(part, angles.cos, angles.sin))
        else:
            normed = _normal(part, norms.eps)[0] * (norms.weights[number].float() + norms.offset)
            place.copy_(_turned(normed, angles.cos, angles.sin))


def rotate_backward(
    parts: tuple[torch.Tensor, ...], heads: Heads, angles: Any, norms: HeadNorms | None, out: torch.Tensor
) -> None:
    """Gradients of turned queries and keys, and of values (T, heads, head), to those of `rotate`'s `qkv`.

    With norms, `out` holds that `qkv` before.
    """
    for number, (part, place) in enumerate(zip(parts, heads.split(out), strict=True)):
        made = part if number == 2 else _turned(part, angles.cos, -angles.sin)
        if norms is not None and number < 2:
            made = _norm_backward(made, place, norms.weights[number], norms.eps, norms.offset)
        place.copy_(made)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half, cos, sin = cos.shape[1], cos[:, None], sin[:, None]
    first, second, rest = torch.split(x, [half, half, x.shape[2] - 2 * half], dim=2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=2)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b` in fp32."""
    return (a @ b).float()


def decode(weight: Any, out: torch.Tensor) -> None:
    """The values of a four-bit weight of bitsandbytes into `out` (out features, in features)."""
    from bitsandbytes.functional import dequantize_4bit

    out.copy_(dequantize_4bit(weight.data, weight.quant_state))


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Losses (N, fp32) of `logits` (N, vocabulary) for `labels` (N); their gradient replaces the logits."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    losses = functional.nll_loss(log_probs, labels, reduction="none")
    share = log_probs.exp_()
    share[torch.arange(len(share), device=share.device), labels] -= 1
    logits.copy_(share)
    return losses


def attend(parts: tuple[torch.Tensor, ...], heads: Heads, starts: torch.Tensor) -> torch.Tensor:
    """The heads' results (T, query, head) for `Heads.split`'s parts; rows are between `starts` (rows + 1)."""
    lengths: list[int] = starts.diff().tolist()
    made = []
    for row_parts in zip(*(torch.split(part, lengths) for part in parts), strict=True):
        query, key, value = (part.transpose(0, 1) for part in row_parts)
        at = torch.arange(query.shape[1], device=query.device)
        distance = at[:, None] - at
        seen = (distance >= 0) & (distance < (heads.window or len(at)))
        row = _attend_row(query[None], key[None], value[None], seen, heads)
        made.append(row[0].transpose(0, 1))
    return torch.cat(made)


def _attend_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, heads: Heads
) -> torch.Tensor:
    """One row's attention; scores are capped as in Gemma 2 (arXiv 2408.00118)."""
    if heads.softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, seen, scale=heads.scale, enable_gqa=True
        )
    key, value = (part.repeat_interleave(heads.query // heads.key, dim=1) for part in (key, value))
    scores = heads.softcap * torch.tanh(query @ key.transpose(-1, -2) * (heads.scale / heads.softcap))
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1) @ value


def attend_backward(
    gradient: torch.Tensor, parts: tuple[torch.Tensor, ...], heads: Heads, starts: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The gradients of the parts from that of the results."""
    with torch.enable_grad():
        sources = tuple(part.detach().requires_grad_() for part in parts)
        return torch.autograd.grad(attend(sources, heads, starts), sources, gradient)


@dataclass(frozen=True)
class Heads:
    """How many heads there are, for queries and for keys and values, and how wide (`head`) they are."""

    query: int
    key: int
    head: int
    scale: float
    window: int | None  # keys that a query sees, itself included; None for all
    softcap: float | None = None  # what scores are capped at; None for not at all

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values (T, heads, head) of one tensor (T, (query + 2 key) head)."""
        heads = qkv.view(len(qkv), -1, self.head)
        return torch.split(heads, [self.query, self.key, self.key], dim=1)


@dataclass(frozen=True)
class HeadNorms:
    """Root mean square norms of each head of queries and of keys; `weights` are (head) each."""

    weights: tuple[torch.Tensor, torch.Tensor]
    eps: float
    offset: float
