"""The loss from the trained positions only, a few at a time, so that the logits are never there as a whole.

The head is frozen, so its own gradient isn't wanted; that of the hidden states is computed in the forward
pass, beside the logits it needs. What is left of the memory is one chunk: 2,048 positions of a vocabulary of
256,000 are 1 GB of bf16 (the idea of Apple's cut cross-entropy, arXiv 2411.09009, without its kernels).
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 2048  # positions


class HeadLoss(torch.autograd.Function):
    """Sum of the negative log likelihoods (nats) of `labels` (N) from `hidden` (N, width).

    `weight` is the frozen head's (vocabulary, width); `softcap` what Gemma 2 caps its logits at, 0 for none.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float
    ) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            logits = (hidden[part] @ weight.T).float()
            if softcap:
                capped = torch.tanh(logits / softcap)
                logits = capped * softcap
            log_probs = torch.log_softmax(logits, dim=-1)
            total += torch.nn.functional.nll_loss(log_probs, labels[part], reduction="sum")
            if gradient is not None:
                slope = log_probs.exp_()
                slope[torch.arange(len(slope), device=slope.device), labels[part]] -= 1
                if softcap:
                    slope *= 1 - capped**2
                gradient[part] = slope.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float
) -> torch.Tensor:
    """`HeadLoss` with the hidden states in the head's own type; a scalar in fp32."""
    loss: torch.Tensor = HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden.to(weight.dtype), weight, labels, softcap
    )
    return loss
