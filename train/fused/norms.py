"""The root mean square norms (arXiv 1910.07467) of a layer and of its heads, as transformers has them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from train.fused.reference_ops import HeadNorms


class Norm:
    """A norm of hidden states, with its gradient."""

    def __init__(self, module: Any, ops: ModuleType) -> None:
        self.ops, self.weight = ops, module.weight.detach()
        self.eps, self.offset = _eps(module), _offset(module)

    def forward(self, x: torch.Tensor, border: int = 0, residual: torch.Tensor | None = None) -> torch.Tensor:
        """`x` (T, hidden), normed, plus `residual`; in (T, hidden + border), whose border isn't written."""
        normed: torch.Tensor = self.ops.rms_norm(x, self.weight, self.eps, self.offset, border, residual)
        return normed

    def backward(
        self, gradient: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None
    ) -> torch.Tensor:
        """The gradient of `x` from its norm's, plus `residual`, in whose place it goes."""
        made: torch.Tensor = self.ops.rms_norm_backward(
            gradient, x, self.weight, residual, self.eps, self.offset
        )
        return made


def norms_of_heads(attention: Any) -> HeadNorms | None:
    """Those of each head of queries and of keys, where a model has them."""
    if not hasattr(attention, "q_norm"):
        return None
    queries, keys = attention.q_norm, attention.k_norm
    weights = queries.weight.detach(), keys.weight.detach()
    return HeadNorms(weights, _eps(queries), _offset(queries))


def _eps(module: Any) -> float:
    return float(getattr(module, "variance_epsilon", None) or module.eps)


def _offset(module: Any) -> float:
    """What is added to the weight: Gemma's lie around 0."""
    return 1.0 if type(module).__name__.startswith("Gemma") else 0.0
