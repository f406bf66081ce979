"""The products of a layer with its frozen matrices in FP8: twice as fast as in 16 bit, and not the same.

Operands are e4m3 with a scale a row (arXiv 2209.05433; row by row as in torchao's float8 training); sums are
fp32 and results 16 bit. The gradient of x wants the matrix laid out by its other side, so it is there twice,
of the same numbers: the rows' scales go into the gradient before that one is quantised. Adapters, attention,
norms and the head stay as they are; what the adapters add to a product is in it (see `fp8_reference`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from train.fused.fp8_reference import FP8, LARGEST, border
from train.fused.frozen import Frozen
from train.fused.layer import Layer, Weights
from train.fused.lora_linear import Projection


@dataclass
class Matrix:
    """A frozen matrix W in e4m3, both ways, with the adapters' border on the right of each.

    `units` scale what is in the borders, so that e4m3 holds it: B's and A's.
    """

    values: torch.Tensor  # (out, in + border)
    turned: torch.Tensor  # (in, out + border)
    scales: torch.Tensor  # (out), fp32
    units: torch.Tensor  # (2, 1), fp32
    ones: torch.Tensor  # (1, in), fp32: the scales of `turned`

    @classmethod
    def empty(cls, projection: Projection) -> Matrix:
        """Room for a projection's; the scales are not written either."""
        out, width, beside = projection.out_features, projection.in_features, border(projection.b.shape[1])
        device = projection.a.device
        return cls(
            torch.zeros(out, width + beside, device=device, dtype=FP8),
            torch.zeros(width, out + beside, device=device, dtype=FP8),
            torch.empty(out, dtype=torch.float32, device=device),
            torch.empty(2, 1, dtype=torch.float32, device=device),
            torch.ones(1, width, dtype=torch.float32, device=device),
        )


class Projection8(Projection):
    """A projection whose products with a `Matrix` are in FP8."""

    quick = True  # of Phi-3.5 and 8,192 tokens o takes 0.2 ms a layer, and what it saves of copies 1.0

    def bordered(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        """Return y (T, out) for `x` (T, in + border), whose border is written here."""
        values, inner = self.split(x)
        if self.adapters:
            torch.mm(values, self.a.T, out=inner)
        return self._product(values, inner, weight)

    def onto(
        self, residual: torch.Tensor | None, x: torch.Tensor, weight: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return y (T, out), plus `residual` if there is one, and x A^T (T, rank)."""
        inner = x @ self.a.T
        y = self._product(x, inner, weight)
        return y if residual is None else y.add_(residual), inner

    def backward(self, gradient: torch.Tensor, weight: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of x (T, in) and of x A^T (T, rank) from that of y."""
        inner_gradient = gradient @ self.b
        rows, scales = self.ops.quantise(gradient, weight.scales, inner_gradient, weight.units[1])
        return product(rows, weight.turned, scales, weight.ones, None, gradient.dtype), inner_gradient

    def _product(self, x: torch.Tensor, inner: torch.Tensor, weight: Matrix) -> torch.Tensor:
        rows, scales = self.ops.quantise(x, None, inner, weight.units[0])
        return product(rows, weight.values, scales, weight.scales[None], self.bias, x.dtype)


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """a b^T (M, N) for rows in e4m3, (M, K) and (N, K), with scales (M, 1) and (1, N)."""
    if a.is_cuda:
        return torch._scaled_mm(a, b.T, a_scales, b_scales, bias=bias, out_dtype=dtype, use_fast_accum=True)
    made = (a.float() @ b.float().T) * a_scales * b_scales
    return (made if bias is None else made + bias).to(dtype)


class Frozen8(Frozen):
    """`Frozen` in FP8: `frozen[n]` has a `Matrix` for each projection of layer n. Scales are found once."""

    def __init__(self, layers: list[Layer], resident: bool, dtype: torch.dtype, ops: Any) -> None:
        self.layers, self.ops, self._here = layers, ops, -1
        self._scales = [
            [torch.cat([self._scales_of(base) for base in p.bases]) for p in layer.projections]
            for layer in layers
        ]
        self._least = torch.stack([scales.amin() for of_layer in self._scales for scales in of_layer])
        self._units = torch.ones(len(layers), len(self._scales[0]), 2, 1, device=self._least.device)
        self._shared = self._kept = None
        if not resident:
            self._shared = _empty(layers[0])
            return
        self._kept = [_empty(layer) for layer in layers]
        for number, weights in enumerate(self._kept):
            self._put(number, weights)

    def begin(self) -> None:
        """Take over the adapters as they are by now: the largest of B over a scale, and of A, become 448."""
        projections = [projection for layer in self.layers for projection in layer.projections]
        if projections[0].adapters:
            a, b = ([getattr(p, name) for p in projections] for name in ("a", "b"))
            of_b = torch.stack(torch._foreach_norm(b, torch.inf)).float() / self._least
            of_a = torch.stack(torch._foreach_norm(a, torch.inf)).float()
            tops = torch.stack([of_b, of_a], 1).view_as(self._units)
            self._units.copy_(torch.where(tops > 0, LARGEST / tops, 1.0))
        super().begin()

    def _border(self, number: int, weights: Weights) -> None:
        for projection, matrix in zip(self.layers[number].projections, weights.all, strict=True):
            if projection.adapters:
                of_b = matrix.values[:, projection.in_features :]
                of_a = matrix.turned[:, projection.out_features :]
                adapters = projection.b, projection.a
                self.ops.quantise_borders(*adapters, matrix.scales, matrix.units, of_b, of_a)

    def _put(self, number: int, weights: Weights) -> None:
        parts = self.layers[number].projections, weights.all, self._scales[number], self._units[number]
        for projection, matrix, scales, units in zip(*parts, strict=True):
            matrix.scales, matrix.units = scales, units
            for base, rows in projection.parts:
                to = matrix.values[rows, : base.in_features], matrix.turned[: base.in_features, rows]
                weight = base.weight  # of a GPTQ layer, a copy that is made for this line
                put = self.ops.quantise_nf4 if hasattr(weight, "quant_state") else self.ops.quantise_matrix
                put(weight, matrix.scales[rows], *to)

    def _scales_of(self, base: Any) -> torch.Tensor:
        """Those of one layer's rows, (out)."""
        weight = base.weight
        if hasattr(weight, "quant_state"):
            decoded = torch.empty(
                base.out_features, base.in_features, dtype=weight.quant_state.dtype, device=weight.device
            )
            self.ops.decode(weight, decoded)
            weight = decoded
        top = weight.abs().amax(1).float()
        return torch.where(top > 0, top / LARGEST, 1.0)


def _empty(layer: Layer) -> Weights:
    return Weights(*map(Matrix.empty, layer.projections))
