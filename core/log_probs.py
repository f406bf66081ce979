"""How likely models think each next token, by transformers and by llama.cpp, and how far two are apart.

A distribution is the log-probabilities of one position, shape (n_vocab,), natural logarithm. Reference
distributions are kept on disk as float16, so that what they came from can be deleted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from core.files import whole
from core.llama import LlamaModel
from core.llama_sampler import log_softmax
from core.machine import available_bytes, idle_thread_count
from core.rows import Row

BATCH_TOKENS = 512  # padding included; the scores of a large vocabulary take half a gigabyte
_FITS = 0.7  # of the free memory that weights in fp32 may take
CONTEXT_STEP = 256  # llama.cpp rounds a context up to it
# Rounding to float16 may give -inf; so small a probability contributes nothing where the other is small too.
_LOWEST = np.float32(-1e4)

LogProbs = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """One stage on the same tokens; `kl_mean`, `kl_99` (99 % of the tokens lie below) in nats, against the
    stage before it; `same_top` is the share of tokens where both think the same token the likeliest."""

    tokens: int
    loss: float  # mean negative log-likelihood, nats a token
    perplexity: float
    kl_mean: float
    kl_99: float
    same_top: float


def targets(rows: Sequence[Row]) -> list[int]:
    """Return the tokens that are predicted, in the order of the distributions."""
    return [token for row in rows for token, trained in zip(row.ids, row.mask, strict=True) if trained]


def predicting(row: Row) -> list[int]:
    """Return the positions whose logits predict the trained tokens: each one before its token."""
    return [i - 1 for i, trained in enumerate(row.mask) if trained]


def gguf_log_probs(
    gguf: Path, rows: Sequence[Row], on_row: Callable[[], None], adapters: Sequence[str] = ()
) -> Iterator[LogProbs]:
    """Yield the distribution before each trained token, through llama-cpp-python. Raises ChatError.

    `adapters`: paths of LoRA GGUFs on top of it."""
    longest = max(len(row.ids) for row in rows)
    model = LlamaModel(gguf, -(-longest // CONTEXT_STEP) * CONTEXT_STEP, idle_thread_count(), list(adapters))
    try:
        for row in rows:
            for _, logits in model.logits(row.ids, set(predicting(row))):
                yield log_softmax(np.ctypeslib.as_array(logits))
            on_row()
    finally:
        model.close()


def save_reference(path: Path, distributions: Iterable[LogProbs], count: int) -> None:
    """Write `count` distributions as float16, shape (count, n_vocab)."""
    written: NDArray[np.float16] | None = None
    with whole(path) as partial:
        for i, log_probs in enumerate(distributions):
            if written is None:
                shape = (count, len(log_probs))
                written = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
            with np.errstate(over="ignore"):  # below -65,504
                rounded = log_probs.astype(np.float16)
            top = int(np.argmax(log_probs))
            if np.argmax(rounded) != top:  # two became equal: the likeliest must stay so
                rounded[top] = np.nextafter(np.max(rounded), np.float16(np.inf))
            written[i] = rounded
        assert written is not None
        written.flush()  # type: ignore[attr-defined]


def read_reference(path: Path) -> Iterator[LogProbs]:
    """Yield the distributions in `path`. Rounded logarithms don't add up to 1; these do again, so that a
    divergence is never negative and the rounding adds less than 1e-6 to it."""
    for rounded in np.load(path, mmap_mode="r"):
        yield log_softmax(rounded.astype(np.float32))


def compare(reference: Path, other: Iterable[LogProbs], wanted: Sequence[int]) -> Scores:
    """Score `other` on the tokens `wanted`, and measure its divergence from the reference, KL(ref || other).

    llama.cpp may pad or trim a vocabulary: both sides then count over the part that they share.
    """
    losses, divergences, same = [], [], 0
    for p, q, token in zip(read_reference(reference), other, wanted, strict=True):
        if len(p) != len(q):
            shared = min(len(p), len(q))
            p, q = log_softmax(p[:shared]), log_softmax(q[:shared])
        p, q = np.maximum(p, _LOWEST), np.maximum(q, _LOWEST)
        losses.append(-float(q[token]))
        divergences.append(float(np.sum(np.exp(p) * (p - q), dtype=np.float64)))
        same += int(np.argmax(p) == np.argmax(q))
    loss = math.fsum(losses) / len(losses)
    return Scores(
        tokens=len(losses),
        loss=loss,
        perplexity=math.exp(min(loss, 700)),  # a broken file must not overflow
        kl_mean=math.fsum(divergences) / len(divergences),
        kl_99=float(np.quantile(divergences, 0.99)),
        same_top=same / len(losses),
    )


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
