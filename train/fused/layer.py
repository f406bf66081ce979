"""One decoder layer, forward and backward by hand: each line here is a matrix product or one kernel.

    n = norm(x);  q, k, v = qkv(n), normed by head and turned;  h = x + norm(o(attention(q, k, v)))
    m = norm(h);  y = h + norm(down(act(gate(m)) * up(m)))

The first norm of each line is in all models; those by head are in Qwen3, those after `o` and `down` in
Gemma 2, all in Gemma 3. transformers' modeling_*.py are the reference. Autograd would keep some thirty
tensors for a layer and make its adapters' gradients in as many steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from train.batches import Packed
from train.fused.attention import attend, attend_backward
from train.fused.lora_linear import Projection
from train.fused.norms import Norm, norms_of_heads
from train.fused.reference_ops import Heads
from train.fused.rotary import Angles

WINDOWED = ("mistral", "phi3")  # whose attention asks the config for its window; the others' has its own
CAPPED = "gemma2"  # whose attention caps its scores; a Gemma 3 has the number and leaves it alone


@dataclass
class Weights:
    """The frozen matrices of one layer, as its projections take them: tensors, or each an `fp8.Matrix`."""

    qkv: Any
    o: Any
    gate_up: Any
    down: Any

    @property
    def all(self) -> tuple[Any, ...]:
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
    down_out: torch.Tensor | None  # (T, hidden), before its norm, where there is one
    quick: bool  # whether to make h again is quicker than to copy it

    @property
    def large(self) -> tuple[str, ...]:
        """The names of what is worth a place elsewhere; `again` makes h too where it isn't among them."""
        if self.down_out is not None:
            return "x", "mixed", "down_out"
        return ("x", "mixed") if self.quick else ("x", "mixed", "h")


@dataclass
class Wide:
    """What it needs besides, three quarters of it all, and can compute again from `Kept`."""

    heads_in: torch.Tensor  # (T, hidden + border), the norm of x
    qkv: torch.Tensor  # (T, (query + 2 key) head), turned unless heads have norms
    mlp_in: torch.Tensor  # (T, hidden + border), the norm of h
    gate_up: torch.Tensor  # (T, 2 intermediate)
    o_out: torch.Tensor | None  # (T, hidden), before its norm, where there is one


class Layer:
    """A layer of a model with PEFT's adapters on it; `kind` says which angles it turns by."""

    def __init__(
        self,
        module: Any,
        config: Any,
        dtype: torch.dtype,
        ops: ModuleType,
        gelu: bool,
        kind: str,
        linear: type[Projection] = Projection,
    ) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.ops, self.gelu, self.kind = ops, gelu, kind
        self.qkv = linear(_parts(attention, "qkv_proj", "q_proj", "k_proj", "v_proj"), dtype, ops, True)
        self.o = linear([attention.o_proj], dtype, ops)
        self.gate_up = linear(_parts(mlp, "gate_up_proj", "gate_proj", "up_proj"), dtype, ops, True)
        self.down = linear([mlp.down_proj], dtype, ops)
        self.heads = Heads(
            query=config.num_attention_heads,
            key=config.num_key_value_heads,
            head=attention.head_dim,
            scale=attention.scaling,
            window=window_of(attention, config),
            softcap=attention.attn_logit_softcapping if config.model_type == CAPPED else None,
        )
        self.head_norms = norms_of_heads(attention)
        norms = {name: Norm(part, ops) for name, part in module.named_children() if "layernorm" in name}
        of_mlp = "post_attention_layernorm"  # but in a layer with norms after `o` and `down`
        self.norms_after: list[Norm | None] = [None, None]
        if "pre_feedforward_layernorm" in norms:
            self.norms_after = [norms[of_mlp], norms["post_feedforward_layernorm"]]
            of_mlp = "pre_feedforward_layernorm"
        self.norms = [norms["input_layernorm"], norms[of_mlp]]

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All four, in the order of `Weights` and of the gradients that `backward` returns."""
        return self.qkv, self.o, self.gate_up, self.down

    def forward(
        self, x: torch.Tensor, weights: Weights, angles: Angles, batch: Packed
    ) -> tuple[torch.Tensor, Kept, Wide]:
        """Return the layer's result (T, hidden) for `x` (T, hidden), and what the backward pass needs."""
        heads_in, qkv = self._heads(x, weights, angles)
        mixed, lse = attend(self._turned(qkv, angles), self.heads, batch)
        h, o_out, o_inner = _onto(x, self.o, mixed, weights.o, self.norms_after[0])
        mlp_in, gate_up = self._gates(h, weights)
        active = self.ops.gated(gate_up, self.gelu)
        y, down_out, down_inner = _onto(h, self.down, active, weights.down, self.norms_after[1])
        kept = Kept(x, mixed, h, lse, o_inner, down_inner, down_out, self.o.quick)
        return y, kept, Wide(heads_in, qkv, mlp_in, gate_up, o_out)

    def _heads(self, x: torch.Tensor, weights: Weights, angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `x`, with its border, and queries, keys and values."""
        heads_in = self.norms[0].forward(x, self.qkv.border)
        qkv = self.qkv.bordered(heads_in, weights.qkv)
        if self.head_norms is None:
            self.ops.rotate(qkv, self.heads, angles, None, out=qkv)
        return heads_in, qkv

    def _turned(self, qkv: torch.Tensor, angles: Angles) -> torch.Tensor:
        """`_heads`' queries, keys and values, turned; in a tensor of their own where heads have norms."""
        if self.head_norms is None:
            return qkv
        turned = torch.empty_like(qkv)
        self.ops.rotate(qkv, self.heads, angles, self.head_norms, out=turned)
        return turned

    def _gates(self, h: torch.Tensor, weights: Weights) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `h`, with its border, and gate and up."""
        mlp_in = self.norms[1].forward(h, self.gate_up.border)
        return mlp_in, self.gate_up.bordered(mlp_in, weights.gate_up)

    def again(self, kept: Kept, weights: Weights, angles: Angles) -> Wide:
        """The wide tensors, bit for bit those of the forward pass, and `kept.h` where that wasn't kept."""
        heads_in, qkv = self._heads(kept.x, weights, angles)
        o_out = None
        if "h" not in kept.large:
            kept.h, o_out, _ = _onto(kept.x, self.o, kept.mixed, weights.o, self.norms_after[0])
        return Wide(heads_in, qkv, *self._gates(kept.h, weights), o_out)

    def backward(
        self, gradient: torch.Tensor, kept: Kept, wide: Wide, weights: Weights, angles: Angles, batch: Packed
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the gradient of `x` (T, hidden), and those of the projections' sources.

        `gradient` and `wide` are used up: where a gradient has a value's shape, it takes its place.
        """
        gradient, of_mlp = self._mlp_backward(gradient, kept, wide, weights)
        of_out = _before(self.norms_after[0], gradient, wide.o_out)
        of_mixed, inner_gradient = self.o.backward(of_out, weights.o)
        of_o = self.o.gradients(of_out, inner_gradient, kept.mixed, kept.o_inner)
        del of_out
        wide.o_out = None
        turned = self._turned(wide.qkv, angles)
        parts = attend_backward(of_mixed, turned, kept.mixed, kept.lse, self.heads, batch)
        del turned
        self.ops.rotate_backward(parts, self.heads, angles, self.head_norms, out=wide.qkv)
        of_normal, inner_gradient = self.qkv.backward(wide.qkv, weights.qkv)
        of_heads = self.qkv.gradients(wide.qkv, inner_gradient, *self.qkv.split(wide.heads_in))
        return self.norms[0].backward(of_normal, kept.x, residual=gradient), of_heads + of_o + of_mlp

    def _mlp_backward(
        self, gradient: torch.Tensor, kept: Kept, wide: Wide, weights: Weights
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The gradients of `h`, in the place of `gradient`, and of the adapters of `gate_up` and `down`."""
        of_out = _before(self.norms_after[1], gradient, kept.down_out)
        # `active` is its gradient, until the next line.
        active, inner_gradient = self.down.backward(of_out, weights.down)
        self.ops.gated_backward(active, wide.gate_up, self.gelu)
        of_down = self.down.gradients(of_out, inner_gradient, active, kept.down_inner)
        del active, of_out
        of_normal, inner_gradient = self.gate_up.backward(wide.gate_up, weights.gate_up)
        of_gate_up = self.gate_up.gradients(wide.gate_up, inner_gradient, *self.gate_up.split(wide.mlp_in))
        del wide.gate_up, wide.mlp_in  # a third of a layer's memory, free before the attention takes its own
        return self.norms[1].backward(of_normal, kept.h, residual=gradient), of_gate_up + of_down


def _onto(
    residual: torch.Tensor, projection: Projection, x: torch.Tensor, weight: torch.Tensor, norm: Norm | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """`residual` plus the projection's result or its norm (T, hidden); what was normed; and x A^T."""
    if norm is None:
        y, inner = projection.onto(residual, x, weight)
        return y, None, inner
    out, inner = projection.onto(None, x, weight)
    return norm.forward(out, residual=residual), out, inner


def _before(norm: Norm | None, gradient: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
    """The gradient of a norm's `x` from that of its result; without a norm they are the same."""
    return gradient if norm is None or x is None else norm.backward(gradient, x, residual=None)


def _parts(module: Any, together: str, *apart: str) -> list[Any]:
    """The layer that holds all of a projection, or the layers that hold it in parts."""
    return [getattr(module, name) for name in ([together] if hasattr(module, together) else apart)]


def window_of(attention: Any, config: Any) -> int | None:
    """How many tokens a layer's attention sees, the token itself included; None for all before it."""
    asked = config if config.model_type in WINDOWED else attention
    found: int | None = getattr(asked, "sliding_window", None)
    return found
