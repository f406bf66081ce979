"""What a tokenizer and the files beside it say of the ids around a text; asked alike wherever it counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers puts a BOS before any text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]


def flat_numbers(values: Iterable[Any]) -> list[int]:
    """The numbers among ids and lists of them, each once: `eos_token_id` may be either, or missing."""
    flat = [i for value in values for i in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(i for i in flat if isinstance(i, int)))
