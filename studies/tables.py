"""What the studies' reports share: a section with its table, and the table of full-size training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from train.card import table


def section(head: Sequence[str], rows: Sequence[Sequence[str]], said: Iterable[str] = ()) -> str:
    """A table, and sentences about it."""
    return "\n\n".join(filter(None, [table(list(head), [list(row) for row in rows]), "\n".join(said)]))


def training_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Memory and speed of training by arm, as `studies/full_size.py` measures them."""
    rows = [
        [
            name,
            cell["pace"],
            f"{cell['tokens_a_batch']:,}",
            f"{cell['training_tokens_per_s']:,.0f}",
            f"{cell['training_memory_gb']:.2f}",
            f"{cell['trainable']:,}",
        ]
        for name, cell in found.items()
    ]
    head = [
        "base",
        "memory",
        "tokens a batch",
        "tokens/s of training",
        "GB at the peak",
        "trained parameters",
    ]
    return table(head, rows)
