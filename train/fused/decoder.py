"""A model's decoder with adapters on it, forward and backward by hand, layer by layer.

`fast` keeps what the backward pass needs, and the frozen matrices in 16 bit. Lean keeps a quarter of it, on a
GPU mostly in the host's memory, and computes the rest again; matrices are decoded when they are needed.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from train.batches import Batch
from train.fused.layer import Angles, Kept, Layer, Norm, Weights, Wide
from train.fused.lora_linear import Projection
from train.fused.offload import Offload


def operations(device: torch.device) -> ModuleType:
    """The functions between the matrix products: kernels on CUDA, formulas on a CPU."""
    if device.type == "cuda":
        from train.fused import triton_ops

        return triton_ops
    from train.fused import reference_ops

    return reference_ops


class Stack:
    """The embedding, the layers and the last norm of a causal language model with PEFT's adapters."""

    def __init__(self, base: Any, dtype: torch.dtype, device: torch.device, fast: bool) -> None:
        decoder, ops = base.get_decoder(), operations(device)
        self.config, self.fast, self.dtype = base.config, fast, dtype
        self.embed, self.rotary = decoder.embed_tokens, decoder.rotary_emb
        gelu = is_gelu(decoder.layers[0].mlp)
        self.layers = [Layer(module, base.config, dtype, ops, gelu) for module in decoder.layers]
        self.norm = Norm(decoder.norm, ops)
        self.frozen = Frozen(self.layers, fast, dtype, ops)
        self.device = device
        self._idle: list[Offload] = []  # of passes that are done; their pinned memory took a while to get
        projections = [projection for layer in self.layers for projection in layer.projections]
        self.sources = [source for p in projections for source in p.sources]
        self._copies = [copy for p in projections for copy in p.copies]
        self._scales = [scale for p in projections for scale in p.scales]
        self._tables: dict[bool, Angles] = {}

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The last hidden states (T, hidden) of a batch, differentiable by the adapters' parameters."""
        if torch.is_grad_enabled():
            function: Any = _Decoder  # untyped
            hidden: torch.Tensor = function.apply(self, batch, *self.sources)
            return hidden
        return self.norm.forward(self.forward(batch, None))

    @torch.no_grad()
    def forward(self, batch: Batch, saved: Saved | None) -> torch.Tensor:
        """The layers' result (T, hidden); `saved` gets what the backward pass needs, unless it is None."""
        torch._foreach_copy_(self._copies, list[torch.Tensor](self.sources))
        torch._foreach_mul_(self._copies, self._scales)
        angles = self.angles(batch)
        x = self._embed(batch.input_ids[0])
        for number, layer in enumerate(self.layers):
            x, kept, wide = layer.forward(x, self.frozen[number], angles, batch)
            if saved is not None:
                saved.put(number, kept, wide)
            del kept, wide
        return x

    @torch.no_grad()
    def backward(self, gradient: torch.Tensor, saved: Saved, batch: Batch) -> list[torch.Tensor]:
        """The gradients of `sources` from that of the layers' result (T, hidden), which is overwritten."""
        gradients: list[torch.Tensor] = []
        angles = self.angles(batch)
        for number in reversed(range(len(self.layers))):
            layer, weights = self.layers[number], self.frozen[number]
            kept, wide = saved.get(number)
            if wide is None:
                wide = layer.again(kept, weights, angles)
            gradient, found = layer.backward(gradient, kept, wide, weights, angles, batch)
            gradients = found + gradients
        if saved.offload:
            self._idle.append(saved.offload)
        return gradients

    def saved(self) -> Saved:
        """A place for what one forward pass leaves to its backward pass."""
        if self.fast:
            return Saved(None)
        return Saved(self._idle.pop() if self._idle else Offload(self.device, len(self.layers) - 1))

    def angles(self, batch: Batch) -> Angles:
        """Of the batch's positions, from a table; in a longer context LongRoPE turns otherwise."""
        short = original_length(self.config) or batch.max_length
        is_long = batch.max_length > short
        table = self._tables.get(is_long)
        if table is None or len(table.cos) < batch.max_length:
            positions = torch.arange(batch.max_length, device=batch.input_ids.device)[None]
            parts = self.rotary(torch.empty(0, device=positions.device), positions)
            table = self._tables[is_long] = Angles(*(part[0].chunk(2, dim=-1)[0].float() for part in parts))
        at = batch.position_ids[0]
        return Angles(table.cos[at], table.sin[at])

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.embed(ids)
        if self.config.model_type == "gemma" and not hasattr(self.embed, "scalar_embed_scale"):
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
        self.offload.put(number, [kept.x, kept.mixed, kept.h])
        kept.x = kept.mixed = kept.h = kept.lse[:0]
        self._layers[number] = kept, None

    def get(self, number: int) -> tuple[Kept, Wide | None]:
        """Take what layer `number` left."""
        kept, wide = self._layers.pop(number)
        if self.offload is not None:
            kept.x, kept.mixed, kept.h = self.offload.get(number)
        return kept, wide


class _Decoder(torch.autograd.Function):
    """`Stack` for autograd."""

    @staticmethod
    def forward(ctx: Any, stack: Stack, batch: Batch, *sources: torch.Tensor) -> torch.Tensor:
        ctx.stack, ctx.batch, ctx.saved = stack, batch, stack.saved()
        ctx.last = stack.forward(batch, ctx.saved)
        return stack.norm.forward(ctx.last)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = ctx.stack.norm.backward(gradients[0], ctx.last, residual=torch.zeros_like(ctx.last))
        ctx.last = None
        return None, None, *ctx.stack.backward(gradient, ctx.saved, ctx.batch)


def original_length(config: Any) -> int | None:
    """The longest context before LongRoPE stretched it; a config has it in one place or the other."""
    rope = getattr(config, "rope_parameters", None) or {}
    found: int | None = getattr(config, "original_max_position_embeddings", None)
    return found or rope.get("original_max_position_embeddings")


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


class Frozen:
    """`frozen[n]` are the matrices of layer n.

    QLoRA's numbers are those of the four-bit base, whichever way they are stored. With `resident`, each
    matrix is decoded once and stays; otherwise one layer's matrices are there at a time, in the same buffers,
    until another layer's are asked for. Those of a 16-bit base stay, as parts of their projection's matrix.
    Where a projection has a border, its matrix has it too, with the adapters' B as it is now.
    """

    def __init__(self, layers: list[Layer], resident: bool, dtype: torch.dtype, ops: ModuleType) -> None:
        self.layers, self.ops = layers, ops
        self._here = -1
        self._shared: Weights | None = None
        self._kept: list[Weights] | None = None
        plain = not any(_is_coded(base) for layer in layers for p in layer.projections for base in p.bases)
        if resident or plain:
            self._kept = [Weights(*(self._whole(p, dtype) for p in layer.projections)) for layer in layers]
        else:
            self._shared = Weights(*(_empty(p, dtype) for p in layers[0].projections))

    def __getitem__(self, number: int) -> Weights:
        weights = self._kept[number] if self._kept is not None else self._decoded(number)
        for projection, matrix in zip(self.layers[number].projections, weights.all, strict=True):
            if projection.border:
                projection.split(matrix)[1].copy_(projection.b)
        return weights

    def _decoded(self, number: int) -> Weights:
        assert self._shared is not None
        if number != self._here:
            for projection, matrix in zip(self.layers[number].projections, self._shared.all, strict=True):
                self._fill(projection, matrix)
            self._here = number
        return self._shared

    def _fill(self, projection: Projection, matrix: torch.Tensor) -> None:
        sizes, weights = [base.out_features for base in projection.bases], projection.split(matrix)[0]
        for base, part in zip(projection.bases, torch.split(weights, sizes), strict=True):
            weight = base.weight  # of a GPTQ layer, a copy that is made for this line
            if hasattr(weight, "quant_state"):
                self.ops.decode(weight, part)
            else:
                part.copy_(weight)

    def _whole(self, projection: Projection, dtype: torch.dtype) -> torch.Tensor:
        """One matrix of a projection; its parts become views of it where they were 16-bit ones."""
        first, alone = projection.bases[0], len(projection.bases) == 1 and not projection.border
        if alone and not _is_coded(first) and first.weight.dtype == dtype:
            whole: torch.Tensor = first.weight.detach()
            return whole
        whole = _empty(projection, dtype)
        self._fill(projection, whole)
        row = 0
        for base in projection.bases:
            if not _is_coded(base):
                base.weight.data = whole[row : row + base.out_features, : base.in_features]
            row += base.out_features
        return whole


def _empty(projection: Projection, dtype: torch.dtype) -> torch.Tensor:
    shape = projection.out_features, projection.in_features + projection.border
    return torch.empty(shape, dtype=dtype, device=projection.a.device)


def _is_coded(base: Any) -> bool:
    """Whether the weight is kept in fewer bits than it is used in."""
    weight = base._parameters.get("weight")
    return weight is None or hasattr(weight, "quant_state")
