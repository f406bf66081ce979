"""Attention row by row, on any device: what a CPU does, and what cuDNN has to agree with."""

from __future__ import annotations

import torch
from torch.nn import functional

from train.fused.heads import Heads


def attend(parts: tuple[torch.Tensor, ...], heads: Heads, starts: torch.Tensor) -> torch.Tensor:
    """The heads' results (T, query, head) for `Heads.split`'s parts; rows are between `starts` (rows + 1)."""
    lengths: list[int] = starts.diff().tolist()
    made = []
    for row_parts in zip(*(torch.split(part, lengths) for part in parts), strict=True):
        query, key, value = (part.transpose(0, 1) for part in row_parts)
        at = torch.arange(query.shape[1], device=query.device)
        distance = at[:, None] - at
        seen = (distance >= 0) & (distance < (heads.window or len(at)))
        row = functional.scaled_dot_product_attention(
            query[None], key[None], value[None], seen, scale=heads.scale, enable_gqa=True
        )
        made.append(row[0].transpose(0, 1))
    return torch.cat(made)


def attend_backward(
    gradient: torch.Tensor, parts: tuple[torch.Tensor, ...], heads: Heads, starts: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The gradients of the parts from that of the results."""
    with torch.enable_grad():
        sources = tuple(part.detach().requires_grad_() for part in parts)
        return torch.autograd.grad(attend(sources, heads, starts), sources, gradient)
