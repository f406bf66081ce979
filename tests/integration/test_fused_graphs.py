"""What a recorded pass computes: a batch that is filled up to its bucket. The recording itself needs CUDA."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.integration.fused_models import FAMILIES, adapted, recipe_of, rows, stack_of
from train.batches import Packed, collate
from train.fused.graphs import ROWS, STEP, Bucket


def packed(*lengths: int) -> Packed:
    return collate(rows(lengths))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_filled_batch_gives_the_same(family: str, tmp_path: Path) -> None:
    model = adapted(tmp_path, family, recipe_of())
    stack, batch = stack_of(model), packed(40, 17, 60)
    filled = Bucket.of(batch, stack.rotary.original).fill(batch)
    assert filled.tokens == STEP > batch.tokens
    found = []
    for each in (batch, filled):
        saved = stack.saved()
        hidden, last = stack.forward_to_norm(each, saved)
        gradient = torch.zeros_like(hidden)
        gradient[: batch.tokens] = torch.linspace(-1, 1, hidden[: batch.tokens].numel()).view(
            batch.tokens, -1
        )
        found.append([hidden[: batch.tokens], *stack.backward_from_norm(gradient, last, saved, each)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [(1,), (256,), (300, 300, 300), (5,) * 40, (2048,), (700, 1348, 3000, 9)])
def test_a_bucket_holds_its_batch(lengths: tuple[int, ...]) -> None:
    batch = packed(*lengths)
    bucket = Bucket.of(batch, None)
    filled = bucket.fill(batch)
    starts = filled.cu_seq_lens.tolist()
    assert starts[: len(lengths) + 1] == batch.cu_seq_lens.tolist()
    assert starts[-1] == filled.tokens == bucket.tokens == filled.position_ids.numel()
    assert len(starts) == bucket.rows + 1 > max(ROWS, len(lengths) + 1)
    assert max(b - a for a, b in pairwise(starts)) <= bucket.longest
    assert filled.tokens - batch.tokens < STEP
    assert int(filled.position_ids.max()) < bucket.longest


def test_no_bucket_turns_a_short_row_as_a_long_one() -> None:
    """Beyond its original context LongRoPE turns otherwise."""
    assert Bucket.of(packed(600), 700).longest == 700
    assert Bucket.of(packed(701, 20), 700).longest == 1024
