"""Linear layers that share their input, as one: queries, keys and values; gate and up."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain
from types import ModuleType
from typing import Any

import torch
from torch import nn

STEP = 16  # ranks are filled up with zeros to so many: 32 bytes, what kernels like rows to begin at


@dataclass(frozen=True)
class _Adapter:
    """One adapter of one of PEFT's layers, and which rows and ranks of the projection are its."""

    layer: Any
    name: str
    rows: slice
    ranks: slice

    @property
    def a(self) -> nn.Parameter:
        """(rank, in), fp32."""
        weight: nn.Parameter = self.layer.lora_A[self.name].weight
        return weight

    @property
    def b(self) -> nn.Parameter:
        """(out, rank), fp32."""
        weight: nn.Parameter = self.layer.lora_B[self.name].weight
        return weight

    @property
    def scale(self) -> float:
        """lora_alpha / r (arXiv 2106.09685), or nothing while adapters are disabled."""
        return 0.0 if self.layer.disable_adapters else float(self.layer.scaling[self.name])


class Projection:
    """y = x W^T + bias + (x A^T) B^T for frozen W (out, in) and the adapters' A (rank, in) and B (out, rank).

    The layers' weights lie below each other, and so do the A of their active adapters; their B, times the
    adapters' scales, are the blocks of a diagonal. A and B are copies in the type of the computation: see
    `sources` and `copies`.

    With a border, W has B on its right, (out, in + border), and x has x A^T, (T, in + border): one product
    does it all.
    """

    quick = False

    def __init__(self, layers: list[Any], dtype: torch.dtype, ops: ModuleType, border: bool = False) -> None:
        self.ops = ops
        self.bases = [getattr(layer, "base_layer", layer) for layer in layers]
        self.adapters: list[_Adapter] = []
        row = rank = 0
        for layer, base in zip(layers, self.bases, strict=True):
            rows = slice(row, row + base.out_features)
            row = rows.stop
            for name in active_adapters(layer):
                ranks = slice(rank, rank + layer.lora_A[name].out_features)
                rank = ranks.stop
                self.adapters.append(_Adapter(layer, name, rows, ranks))
        rank = -rank % STEP + rank
        self.border = rank if border else 0
        self.out_features, self.in_features = row, self.bases[0].in_features
        device = next(chain(self.bases[0].parameters(), self.bases[0].buffers())).device
        self.a = torch.zeros(rank, self.in_features, dtype=dtype, device=device)
        self.b = torch.zeros(self.out_features, rank, dtype=dtype, device=device)
        self.bias = _bias(self.bases, dtype, device)

    @property
    def parts(self) -> list[tuple[Any, slice]]:
        """The layers, and which rows of the projection are theirs."""
        ends = list(accumulate(base.out_features for base in self.bases))
        return [
            (base, slice(end - base.out_features, end)) for base, end in zip(self.bases, ends, strict=True)
        ]

    @property
    def sources(self) -> list[nn.Parameter]:
        """The adapters' parameters, A and B in turns."""
        return [part for adapter in self.adapters for part in (adapter.a, adapter.b)]

    @property
    def copies(self) -> list[torch.Tensor]:
        """Where the sources' values go in `a` and `b`."""
        return [
            part
            for adapter in self.adapters
            for part in (self.a[adapter.ranks], self.b[adapter.rows, adapter.ranks])
        ]

    @property
    def scales(self) -> list[float]:
        """What the sources' values are multiplied by."""
        return [scale for adapter in self.adapters for scale in (1.0, adapter.scale)]

    def bordered(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return y (T, out) for `x` (T, in + border), whose border is written here, and such a `weight`."""
        values, inner = self.split(x)
        if self.adapters:
            torch.mm(values, self.a.T, out=inner)
        return x @ weight.T if self.bias is None else torch.addmm(self.bias, x, weight.T)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x (T, in) and x A^T (T, border) of one tensor."""
        return x[:, : self.in_features], x[:, self.in_features :]

    def onto(
        self, residual: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return y (T, out), plus `residual` if there is one, and x A^T (T, rank)."""
        inner = x @ self.a.T
        small = inner @ self.b.T if residual is None else torch.addmm(residual, inner, self.b.T)
        if self.bias is not None:
            small += self.bias
        return small.addmm_(x, weight.T), inner

    def backward(self, gradient: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of x (T, in) and of x A^T (T, rank) from that of y."""
        inner_gradient, weight = gradient @ self.b, weight[:, : self.in_features]
        if not self.adapters:
            return gradient @ weight, inner_gradient
        return (inner_gradient @ self.a).addmm_(gradient, weight), inner_gradient

    def gradients(
        self, gradient: torch.Tensor, inner_gradient: torch.Tensor, x: torch.Tensor, inner: torch.Tensor
    ) -> list[torch.Tensor]:
        """The gradients of `sources`, in fp32."""
        if not self.adapters:
            return []
        of_a = self.ops.product(inner_gradient.T, x)
        of_b = self.ops.product(gradient.T, inner)
        return [
            part
            for adapter in self.adapters
            for part in (of_a[adapter.ranks], of_b[adapter.rows, adapter.ranks] * adapter.scale)
        ]


def active_adapters(layer: Any) -> tuple[str, ...]:
    """The names of the adapters that are active on a layer; none on one without."""
    if not hasattr(layer, "lora_A"):
        return ()
    return tuple(name for name in layer.active_adapters if name in layer.lora_A)


def _bias(bases: list[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """The layers' biases one after the other, or None where no layer has one."""
    if all(base.bias is None for base in bases):
        return None
    zeros = (torch.zeros(base.out_features, device=device) for base in bases)
    return torch.cat(
        [
            (none if base.bias is None else base.bias).to(dtype)
            for base, none in zip(bases, zeros, strict=True)
        ]
    )
