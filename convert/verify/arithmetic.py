"""How a model is asked on the processor: fp32 arithmetic on stored 16-bit weights, a few rows at a time.

llama.cpp keeps activations in fp32 between its f16 products, so this is the smallest difference that
conversion can honestly be given: bf16 arithmetic differs from itself in another order by more than a wrong
norm would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from chat.machine import available_bytes, idle_thread_count
from convert.rows import Row
from convert.verify.loss import LogProbs, predicting

BATCH_TOKENS = 512  # padding included; the scores of a large vocabulary take half a gigabyte
_FITS = 0.7  # of the free memory that weights in fp32 may take


def loading_dtype(stored_bytes: int) -> torch.dtype | str:
    """Fp32 where it fits; else as stored, and `float32_arithmetic` converts layer by layer."""
    return torch.float32 if 2 * stored_bytes < _FITS * available_bytes() else "auto"


@contextmanager
def idle_threads() -> Iterator[None]:
    """Let torch use the cores that nobody else does."""
    before = torch.get_num_threads()
    torch.set_num_threads(idle_thread_count())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def log_probs(model: Any, rows: Sequence[Row], on_row: Callable[[], None]) -> Iterator[LogProbs]:
    """Yield the distribution before each trained token, in the rows' order.

    Rows are padded on the right, where a causal model's earlier tokens never look, and the head computes
    only the positions that are asked for.
    """
    head = model.get_output_embeddings()
    for batch in batches(rows):
        width = max(len(row.ids) for row in batch)
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in batch])
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(batch):
            wanted[i, predicting(row)] = True
        hook = head.register_forward_pre_hook(lambda _, given, wanted=wanted: (given[0][wanted],))
        try:
            logits = model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        yield from torch.log_softmax(logits.float(), dim=-1).numpy()
        for _ in batch:
            on_row()


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Group neighbouring rows into batches of at most BATCH_TOKENS with padding; a longer row is alone."""
    batch: list[Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * max(len(r.ids) for r in [*batch, row]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def float32_arithmetic(model: nn.Module) -> None:
    """Let a model with 16-bit weights compute in fp32, one linear layer's weights converted at a time.

    Widening and narrowing back loses nothing. All that is not a linear layer is small and stays wide.
    """
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.dtype != torch.float32:
            stored = module.weight.dtype
            module.register_forward_pre_hook(lambda layer, _: layer.float() and None)
            module.register_forward_hook(lambda layer, *_, stored=stored: layer.to(stored) and None)
