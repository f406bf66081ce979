"""The angles by which a model turns queries and keys, from tables of its own rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from train.batches import Packed

ALL, NONE = "", "none"  # the kinds of layers that share the one rotary embedding, or don't turn


@dataclass
class Angles:
    """Cosine and sine of each token's positions, (T, half of the columns that are turned), fp32."""

    cos: torch.Tensor
    sin: torch.Tensor


class Rotary:
    """A decoder's rotary embedding (arXiv 2104.09864), by the kind of a layer.

    Gemma 3 has one for local layers and one for the others, SmolLM3 none in every fourth layer. In a longer
    context LongRoPE (arXiv 2402.13753) turns otherwise.
    """

    def __init__(self, module: Any, config: Any) -> None:
        self._module, self.original = module, original_length(config)
        self._tables: dict[tuple[str, bool], Angles] = {}

    def kind(self, attention: Any) -> str:
        """Which angles a layer's attention wants."""
        if not getattr(attention, "use_rope", True):
            return NONE
        return str(attention.layer_type) if hasattr(self._module, "layer_types") else ALL

    def tables(self) -> list[Angles]:
        """Those that are there by now."""
        return list(self._tables.values())

    def angles(self, batch: Packed, kind: str) -> Angles:
        """Of the batch's positions."""
        if kind == NONE:  # turned by nothing
            cos = torch.ones_like(self.angles(batch, ALL).cos)
            return Angles(cos, torch.zeros_like(cos))
        is_long = batch.max_length > (self.original or batch.max_length)
        table = self._tables.get((kind, is_long))
        if table is None or len(table.cos) < batch.max_length:
            positions = torch.arange(batch.max_length, device=batch.input_ids.device)[None]
            of_kind = [kind] if kind else []
            parts = self._module(torch.empty(0, device=positions.device), positions, *of_kind)
            table = Angles(*(part[0].chunk(2, dim=-1)[0].float().contiguous() for part in parts))
            self._tables[kind, is_long] = table
        at = batch.position_ids[0]
        return Angles(table.cos[at], table.sin[at])


def original_length(config: Any) -> int | None:
    """The longest context before LongRoPE stretched it; a config has it in one place or the other."""
    rope = getattr(config, "rope_parameters", None) or {}
    found: int | None = getattr(config, "original_max_position_embeddings", None)
    return found or rope.get("original_max_position_embeddings")
