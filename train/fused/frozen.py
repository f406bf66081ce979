"""The frozen matrices of a decoder's layers, decoded once or whenever they are needed."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from train.fused.layer import Layer, Weights
from train.fused.lora_linear import Projection


class Frozen:
    """`frozen[n]` are the matrices of layer n.

    QLoRA's numbers are those of the four-bit base, whichever way they are stored. With `resident`, each
    matrix is decoded once and stays; otherwise one layer's matrices are there at a time, in the same buffers,
    until another layer's are asked for. Those of a 16-bit base stay, as parts of their projection's matrix.
    Where a projection has a border, its matrix has it too, with the adapters' B as it was at `begin`.
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

    def begin(self) -> None:
        """Get ready for a pass, whose adapters are in the projections by now."""
        for number, weights in enumerate(self._kept or []):
            self._border(number, weights)

    def forget(self) -> None:
        """Decode the next layer that is asked for, whichever was there last."""
        self._here = -1

    def __getitem__(self, number: int) -> Weights:
        if self._kept is not None:
            return self._kept[number]
        assert self._shared is not None
        if number != self._here:
            self._put(number, self._shared)
            self._here = number
        self._border(number, self._shared)
        return self._shared

    def _border(self, number: int, weights: Weights) -> None:
        """Put the adapters beside the matrices of a layer."""
        for projection, matrix in zip(self.layers[number].projections, weights.all, strict=True):
            if projection.border:
                projection.split(matrix)[1].copy_(projection.b)

    def _put(self, number: int, weights: Weights) -> None:
        """Decode the matrices of a layer into `weights`."""
        for projection, matrix in zip(self.layers[number].projections, weights.all, strict=True):
            self._fill(projection, matrix)

    def _fill(self, projection: Projection, matrix: torch.Tensor) -> None:
        for base, rows in projection.parts:
            part, weight = matrix[rows, : base.in_features], base.weight
            if hasattr(weight, "quant_state"):
                self.ops.decode(weight, part)
            else:
                part.copy_(weight)  # of a GPTQ layer, a copy that is made for this line

    def _whole(self, projection: Projection, dtype: torch.dtype) -> torch.Tensor:
        """One matrix of a projection; its parts become views of it where they were 16-bit ones."""
        first, alone = projection.bases[0], len(projection.bases) == 1 and not projection.border
        if alone and not _is_coded(first) and first.weight.dtype == dtype:
            whole: torch.Tensor = first.weight.detach()
            return whole
        whole = _empty(projection, dtype)
        self._fill(projection, whole)
        for base, rows in projection.parts:
            if not _is_coded(base):
                base.weight.data = whole[rows, : base.in_features]
        return whole


def _empty(projection: Projection, dtype: torch.dtype) -> torch.Tensor:
    shape = projection.out_features, projection.in_features + projection.border
    return torch.empty(shape, dtype=dtype, device=projection.a.device)


def _is_coded(base: Any) -> bool:
    """Whether the weight is kept in fewer bits than it is used in."""
    weight = base._parameters.get("weight")
    return weight is None or hasattr(weight, "quant_state")
