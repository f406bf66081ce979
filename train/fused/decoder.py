"""A model's decoder with adapters on it, forward and backward by hand, layer by layer.

`fast` keeps what the backward pass needs, and the frozen matrices in 16 bit. Lean keeps a quarter of it, on a
GPU mostly in the host's memory, and computes the rest again; matrices are decoded when they are needed.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from train.batches import Packed
from train.fused.fp8 import Frozen8, Projection8
from train.fused.frozen import Frozen
from train.fused.layer import Kept, Layer, Wide
from train.fused.lora_linear import Projection
from train.fused.norms import Norm
from train.fused.offload import Offload
from train.fused.rotary import Angles, Rotary


def operations(device: torch.device) -> ModuleType:
    """The functions between the matrix products: kernels on CUDA, formulas on a CPU."""
    if device.type == "cuda":
        from train.fused import triton_ops

        return triton_ops
    from train.fused import reference_ops

    return reference_ops


class Stack:
    """The embedding, the layers and the last norm of a causal language model with PEFT's adapters."""

    def __init__(
        self, base: Any, dtype: torch.dtype, device: torch.device, fast: bool, fp8: bool = False
    ) -> None:
        decoder, ops = base.get_decoder(), operations(device)
        self.config, self.fast, self.fp8, self.dtype = base.config, fast, fp8, dtype
        self.embed, self.rotary = decoder.embed_tokens, Rotary(decoder.rotary_emb, base.config)
        gelu = is_gelu(decoder.layers[0].mlp)
        linear = Projection8 if fp8 else Projection
        self.layers = [
            Layer(module, base.config, dtype, ops, gelu, self.rotary.kind(module.self_attn), linear)
            for module in decoder.layers
        ]
        self.norm = Norm(decoder.norm, ops)
        self.frozen = (Frozen8 if fp8 else Frozen)(self.layers, fast, dtype, ops)
        self.device = device
        self._idle: list[Offload] = []  # of passes that are done; their pinned memory took a while to get
        self._projections = [projection for layer in self.layers for projection in layer.projections]
        self.sources = [source for p in self._projections for source in p.sources]
        self._copies = [copy for p in self._projections for copy in p.copies]

    def __call__(self, batch: Packed) -> torch.Tensor:
        """The last hidden states (T, hidden) of a batch, differentiable by the adapters' parameters."""
        if torch.is_grad_enabled():
            function: Any = _Decoder  # untyped
            hidden: torch.Tensor = function.apply(self, batch, *self.sources)
            return hidden
        return self.norm.forward(self.forward(batch, None))

    @property
    def scales(self) -> list[float]:
        """What the values of `sources` are multiplied by."""
        return [scale for p in self._projections for scale in p.scales]

    @torch.no_grad()
    def forward_to_norm(self, batch: Packed, saved: Saved) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden states (T, hidden), and what they were before the last norm."""
        last = self.forward(batch, saved)
        return self.norm.forward(last), last

    @torch.no_grad()
    def backward_from_norm(
        self, gradient: torch.Tensor, last: torch.Tensor, saved: Saved, batch: Packed
    ) -> list[torch.Tensor]:
        """The gradients of `sources` from that of the last hidden states."""
        gradient = self.norm.backward(gradient, last, residual=torch.zeros_like(last))
        return self.backward(gradient, saved, batch)

    @torch.no_grad()
    def forward(self, batch: Packed, saved: Saved | None) -> torch.Tensor:
        """The layers' result (T, hidden); `saved` gets what the backward pass needs, unless it is None."""
        if self.sources:
            torch._foreach_copy_(self._copies, list[torch.Tensor](self.sources))
            torch._foreach_mul_(self._copies, self.scales)
        self.frozen.begin()
        angles = self.angles(batch)
        x = self._embed(batch.input_ids[0])
        for number, layer in enumerate(self.layers):
            x, kept, wide = layer.forward(x, self.frozen[number], angles[layer.kind], batch)
            if saved is not None:
                saved.put(number, kept, wide)
            del kept, wide
        return x

    @torch.no_grad()
    def backward(self, gradient: torch.Tensor, saved: Saved, batch: Packed) -> list[torch.Tensor]:
        """The gradients of `sources` from that of the layers' result (T, hidden), which is overwritten."""
        gradients: list[torch.Tensor] = []
        angles = self.angles(batch)
        for number in reversed(range(len(self.layers))):
            layer, weights = self.layers[number], self.frozen[number]
            kept, wide = saved.get(number)
            if wide is None:
                wide = layer.again(kept, weights, angles[layer.kind])
            gradient, found = layer.backward(gradient, kept, wide, weights, angles[layer.kind], batch)
            gradients = found + gradients
        if saved.offload:
            self._idle.append(saved.offload)
        return gradients

    def saved(self) -> Saved:
        """A place for what one forward pass leaves to its backward pass."""
        if self.fast:
            return Saved(None)
        return Saved(self._idle.pop() if self._idle else Offload(self.device, len(self.layers) - 1))

    def angles(self, batch: Packed) -> dict[str, Angles]:
        """Of the batch's positions, by the kind of a layer."""
        return {kind: self.rotary.angles(batch, kind) for kind in dict.fromkeys(x.kind for x in self.layers)}

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.embed(ids)
        if self.config.model_type in ("gemma", "gemma2") and not hasattr(self.embed, "scalar_embed_scale"):
            # in older releases of transformers the model multiplies, not the embedding
            x = x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype)
        return x.to(self.dtype)


class Saved:
    """What one forward pass leaves to its backward pass; with an offload, without the wide tensors."""

    def __init__(self, offload: Offload | None) -> None:
        self.offload = offload
        self._layers: dict[int, tuple[Kept, Wide | None]] = {}

    def put(self, number: int, kept: Kept, wide: Wide) -> None:
        """Keep what layer `number` leaves."""
        if self.offload is None:
            self._layers[number] = kept, wide
            return
        names, nothing = kept.large, kept.lse[:0]
        self.offload.put(number, [getattr(kept, name) for name in names])
        kept.h = nothing  # it is among them, or made again
        for name in names:
            setattr(kept, name, nothing)
        self._layers[number] = kept, None

    def settle(self) -> None:
        """Wait for what is on its way to the host."""
        if self.offload is not None:
            self.offload.settle()

    def places(self) -> list[torch.Tensor]:
        """The host's memory that it uses."""
        return self.offload.places if self.offload is not None else []

    def get(self, number: int) -> tuple[Kept, Wide | None]:
        """Take what layer `number` left."""
        kept, wide = self._layers.pop(number)
        if self.offload is not None:
            for name, tensor in zip(kept.large, self.offload.get(number), strict=True):
                setattr(kept, name, tensor)
        return kept, wide


class _Decoder(torch.autograd.Function):
    """`Stack` for autograd."""

    @staticmethod
    def forward(ctx: Any, stack: Stack, batch: Packed, *sources: torch.Tensor) -> torch.Tensor:
        ctx.stack, ctx.batch, ctx.saved = stack, batch, stack.saved()
        hidden, ctx.last = stack.forward_to_norm(batch, ctx.saved)
        return hidden

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        last, ctx.last = ctx.last, None
        return None, None, *ctx.stack.backward_from_norm(gradients[0], last, ctx.saved, ctx.batch)


def is_gelu(mlp: Any) -> bool:
    """Whether the gate's activation is GELU by its tangent formula, and not SiLU. Raises ValueError."""
    function = getattr(mlp, "act_fn", None) or mlp.activation_fn
    x = torch.linspace(-3, 3, 13)
    for gelu, known in ((False, torch.nn.functional.silu(x)), (True, _gelu(x))):
        if torch.allclose(function(x), known, atol=1e-6):
            return gelu
    raise ValueError(f"its activation {type(function).__name__} is neither SiLU nor GELU's tangent formula")


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")
