"""How an attention's queries, keys and values lie in one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Heads:
    """How many heads there are, for queries and for keys and values, and how wide (`head`) they are."""

    query: int
    key: int
    head: int
    scale: float
    window: int | None  # keys that a query sees, itself included; None for all

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values (T, heads, head) of one tensor (T, (query + 2 key) head)."""
        heads = qkv.view(len(qkv), -1, self.head)
        return torch.split(heads, [self.query, self.key, self.key], dim=1)
