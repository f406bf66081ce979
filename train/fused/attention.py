"""Causal attention of packed rows, and its gradients: by cuDNN or FlashAttention, row by row on a CPU.

Neither of the two caps scores, as Gemma 2 does: that has kernels of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from train.batches import Packed
from train.fused import reference_ops
from train.fused.cudnn_attention import plan_for
from train.fused.reference_ops import Heads


def attend(qkv: torch.Tensor, heads: Heads, batch: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the heads' results (T, query head) and what the backward pass needs, their log sums."""
    if plan := _plan(qkv, heads, batch):
        out, lse = plan.forward(qkv, batch.cu_seq_lens)
        return out.flatten(1), lse
    q, k, v = heads.split(qkv)
    if not qkv.is_cuda:
        out = reference_ops.attend((q, k, v), heads, batch.cu_seq_lens)
        return out.flatten(1), qkv.new_empty(0)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *_packed(batch), False, scale=heads.scale, **_window(heads, batch)
    )
    return out.flatten(1), lse


def attend_backward(
    gradient: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    heads: Heads,
    batch: Packed,
) -> tuple[torch.Tensor, ...]:
    """The gradients of queries, keys and values (T, heads, head) from that of `out` (T, query head)."""
    if plan := _plan(qkv, heads, batch):
        gradients: tuple[torch.Tensor, ...] = plan.backward(gradient, qkv, out, lse, batch.cu_seq_lens)
        return gradients
    q, k, v = heads.split(qkv)
    gradient = gradient.view_as(q)
    if not qkv.is_cuda:
        return reference_ops.attend_backward(gradient, (q, k, v), heads, batch.cu_seq_lens)
    unused = gradient.new_empty(0)  # the random state of dropout
    gradients = torch.ops.aten._flash_attention_backward(
        gradient,
        q,
        k,
        v,
        out.view_as(q),
        lse,
        *_packed(batch),
        unused,
        unused,
        scale=heads.scale,
        **_window(heads, batch),
    )
    return gradients


def _plan(qkv: torch.Tensor, heads: Heads, batch: Packed) -> Any:
    """Kernels for this batch that PyTorch hasn't, or None: those with a cap, or cuDNN's."""
    if heads.softcap is not None and qkv.is_cuda:
        from train.fused.capped_attention import Capped  # needs Triton

        return Capped(heads)
    return plan_for(qkv, heads, batch)


def _packed(batch: Packed) -> tuple[Any, ...]:
    """Where rows begin and how long they are, for queries and keys; no dropout; causal."""
    starts, longest = batch.cu_seq_lens, batch.max_length
    return starts, starts, longest, longest, 0.0, True


def _window(heads: Heads, batch: Packed) -> dict[str, int]:
    if heads.window is None or heads.window >= batch.max_length:
        return {}
    return {"window_size_left": heads.window - 1, "window_size_right": 0}
