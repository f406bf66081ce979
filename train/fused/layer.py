"""One decoder layer, forward and backward by hand: each line here is a matrix product or one kernel.

    n = norm(x);  q, k, v = qkv(n), turned by position;  h = x + o(attention(q, k, v))
    m = norm(h);  y = h + down(act(gate(m)) * up(m))

That is a layer of Llama, Mistral, Phi-3 and Gemma; transformers' modeling_*.py are the reference. Autograd
would keep some thirty tensors for it and make its adapters' gradients in as many steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from train.batches import Batch
from train.fused.attention import attend, attend_backward
from train.fused.lora_linear import Projection
from train.fused.reference_ops import Heads

WINDOWED = ("mistral", "phi3")  # the models that look at their config's sliding_window


@dataclass
class Angles:
    """Cosine and sine of each token's positions, (T, head / 2), fp32."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass
class Weights:
    """The frozen matrices of one layer, in the type of the computation."""

    qkv: torch.Tensor
    o: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor

    @property
    def all(self) -> tuple[torch.Tensor, ...]:
        """In the order of `Layer.projections`."""
        return self.qkv, self.o, self.gate_up, self.down


@dataclass
class Kept:
    """What the backward pass needs of a layer; `*_inner` are projections' x A^T (T, rank)."""

    x: torch.Tensor  # (T, hidden)
    mixed: torch.Tensor  # (T, query head), of the attention
    h: torch.Tensor  # (T, hidden)
    lse: torch.Tensor  # of the attention
    o_inner: torch.Tensor
    down_inner: torch.Tensor


@dataclass
class Wide:
    """What it needs besides, three quarters of it all, and can compute again from `Kept`."""

    heads_in: torch.Tensor  # (T, hidden + border), the norm of x
    qkv: torch.Tensor  # (T, (query + 2 key) head), turned
    mlp_in: torch.Tensor  # (T, hidden + border), the norm of h
    gate_up: torch.Tensor  # (T, 2 intermediate)


class Layer:
    """A layer of a model with PEFT's adapters on it."""

    def __init__(self, module: Any, config: Any, dtype: torch.dtype, ops: ModuleType, gelu: bool) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.ops, self.gelu = ops, gelu
        self.qkv = Projection(_parts(attention, "qkv_proj", "q_proj", "k_proj", "v_proj"), dtype, ops, True)
        self.o = Projection([attention.o_proj], dtype, ops)
        self.gate_up = Projection(_parts(mlp, "gate_up_proj", "gate_proj", "up_proj"), dtype, ops, True)
        self.down = Projection([mlp.down_proj], dtype, ops)
        self.heads = Heads(
            query=config.num_attention_heads,
            key=config.num_key_value_heads,
            head=attention.head_dim,
            scale=attention.scaling,
            window=config.sliding_window if config.model_type in WINDOWED else None,
        )
        self.norms = [Norm(part, ops) for part in (module.input_layernorm, module.post_attention_layernorm)]

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All four, in the order of `Weights` and of the gradients that `backward` returns."""
        return self.qkv, self.o, self.gate_up, self.down

    def forward(
        self, x: torch.Tensor, weights: Weights, angles: Angles, batch: Batch
    ) -> tuple[torch.Tensor, Kept, Wide]:
        """Return the layer's result (T, hidden) for `x` (T, hidden), and what the backward pass needs."""
        heads_in, qkv = self._heads(x, weights, angles)
        mixed, lse = attend(qkv, self.heads, batch)
        h, o_inner = self.o.onto(x, mixed, weights.o)
        mlp_in, gate_up = self._gates(h, weights)
        active = self.ops.gated(gate_up, self.gelu)
        y, down_inner = self.down.onto(h, active, weights.down)
        return y, Kept(x, mixed, h, lse, o_inner, down_inner), Wide(heads_in, qkv, mlp_in, gate_up)

    def _heads(self, x: torch.Tensor, weights: Weights, angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `x`, with its border, and queries, keys and values."""
        heads_in = self.norms[0].forward(x, self.qkv.border)
        qkv = self.qkv.bordered(heads_in, weights.qkv)
        self.ops.rotate(qkv, self.heads, angles)
        return heads_in, qkv

    def _gates(self, h: torch.Tensor, weights: Weights) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `h`, with its border, and gate and up."""
        mlp_in = self.norms[1].forward(h, self.gate_up.border)
        return mlp_in, self.gate_up.bordered(mlp_in, weights.gate_up)

    def again(self, kept: Kept, weights: Weights, angles: Angles) -> Wide:
        """The wide tensors, bit for bit those of the forward pass."""
        return Wide(*self._heads(kept.x, weights, angles), *self._gates(kept.h, weights))

    def backward(
        self, gradient: torch.Tensor, kept: Kept, wide: Wide, weights: Weights, angles: Angles, batch: Batch
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the gradient of `x` (T, hidden), and those of the projections' sources.

        `gradient` and `wide` are used up: where a gradient has a value's shape, it takes its place.
        """
        gradient, of_mlp = self._mlp_backward(gradient, kept, wide, weights)
        of_mixed, inner_gradient = self.o.backward(gradient, weights.o)
        of_o = self.o.gradients(gradient, inner_gradient, kept.mixed, kept.o_inner)
        parts = attend_backward(of_mixed, wide.qkv, kept.mixed, kept.lse, self.heads, batch)
        self.ops.rotate_backward(parts, self.heads, angles, out=wide.qkv)
        of_normal, inner_gradient = self.qkv.backward(wide.qkv, weights.qkv)
        of_heads = self.qkv.gradients(wide.qkv, inner_gradient, *self.qkv.split(wide.heads_in))
        return self.norms[0].backward(of_normal, kept.x, residual=gradient), of_heads + of_o + of_mlp

    def _mlp_backward(
        self, gradient: torch.Tensor, kept: Kept, wide: Wide, weights: Weights
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The gradients of `h`, in the place of `gradient`, and of the adapters of `gate_up` and `down`."""
        # `active` is its gradient, until the next line.
        active, inner_gradient = self.down.backward(gradient, weights.down)
        self.ops.gated_backward(active, wide.gate_up, self.gelu)
        of_down = self.down.gradients(gradient, inner_gradient, active, kept.down_inner)
        del active
        of_normal, inner_gradient = self.gate_up.backward(wide.gate_up, weights.gate_up)
        of_gate_up = self.gate_up.gradients(wide.gate_up, inner_gradient, *self.gate_up.split(wide.mlp_in))
        del wide.gate_up, wide.mlp_in  # a third of a layer's memory, free before the attention takes its own
        return self.norms[1].backward(of_normal, kept.h, residual=gradient), of_gate_up + of_down


class Norm:
    """A root mean square norm of transformers; Gemma's multiplies by one more than its weight."""

    def __init__(self, module: Any, ops: ModuleType) -> None:
        self.ops, self.weight = ops, module.weight.detach()
        self.eps = getattr(module, "variance_epsilon", None) or module.eps
        self.offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0

    def forward(self, x: torch.Tensor, border: int = 0) -> torch.Tensor:
        """`x` (T, hidden), normed, in a tensor (T, hidden + border) whose border isn't written."""
        normed: torch.Tensor = self.ops.rms_norm(x, self.weight, self.eps, self.offset, border)
        return normed

    def backward(self, gradient: torch.Tensor, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The gradient of `x` from its norm's, plus `residual`, in whose place it goes."""
        made: torch.Tensor = self.ops.rms_norm_backward(
            gradient, x, self.weight, residual, self.eps, self.offset
        )
        return made


def _parts(module: Any, together: str, *apart: str) -> list[Any]:
    """The layer that holds all of a projection, or the layers that hold it in parts."""
    return [getattr(module, name) for name in ([together] if hasattr(module, together) else apart)]
