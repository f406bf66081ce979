"""The loss from the trained positions only, a few at a time, so that the logits are never there as a whole.

The head is frozen, so its own gradient isn't wanted; that of the hidden states is computed in the forward
pass, in the place of the logits it needs (the idea of Apple's cut cross-entropy, arXiv 2411.09009, without
its kernels). What is left of the memory is one chunk of logits.
"""

from __future__ import annotations

from typing import Any

import torch

from train.batches import IGNORED, Batch
from train.fused.decoder import operations

LOGITS = 2**27  # of a chunk: a quarter of a GB in bf16


def chunk(vocabulary: int) -> int:
    """Positions that are done at a time."""
    return max(128, LOGITS // vocabulary // 128 * 128)


class HeadLoss(torch.autograd.Function):
    """Sum of the negative log likelihoods (nats) of `labels` (N) from `hidden` (T, width) at `places` (N).

    `weight` is the frozen head's (vocabulary, width); `softcap` what Gemma 2 caps its logits at, 0 for none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        places: torch.Tensor,
        softcap: float,
    ) -> torch.Tensor:
        ops = operations(hidden.device)
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        size = chunk(len(weight))
        for place, label in zip(torch.split(places, size), torch.split(labels, size), strict=True):
            logits = hidden[place] @ weight.T
            if softcap:
                capped = torch.tanh(logits.float() / softcap)
                logits = capped * softcap
            total += ops.cross_entropy(logits, label).sum()  # the logits are their gradient from here on
            if softcap:
                logits *= 1 - capped**2
            if gradient is not None:
                gradient[place] = logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None, None


def head_loss(hidden: torch.Tensor, weight: torch.Tensor, batch: Batch, softcap: float) -> torch.Tensor:
    """The summed loss of a batch's trained tokens from its hidden states (T, width); a scalar in fp32."""
    labels = batch.labels[0]
    # The size is known: nothing waits for the GPU.
    places = torch.nonzero_static(labels != IGNORED, size=batch.trained).squeeze(1)
    loss: torch.Tensor = HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden.to(weight.dtype), weight, labels[places], places, softcap
    )
    return loss
