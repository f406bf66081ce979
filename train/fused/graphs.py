"""A training pass as two CUDA graphs: its thousands of kernels start at once, without the processor.

With steps of 2,048 tokens the processor takes two or three times as long to launch the kernels as the GPU to
run them. A graph repeats them all, on the same memory and for the same shapes: see PyTorch's notes on CUDA
graphs. So a batch is filled up to the sizes of a `Bucket`, with one more row, which nothing looks at. The
first batch of a bucket is computed launch by launch; when the bucket comes again it is recorded.
"""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from train.batches import Packed
from train.fused.cudnn_attention import power_of_two
from train.fused.decoder import Stack

ROWS, STEP = 8, 256  # the least of rows, and tokens come in steps
# With more tokens the GPU is the slower one, and a recorded pass keeps its memory: of 8,192 tokens it gained
# nothing in lean mode on an H100, 2 % in fast mode. FP8 has more kernels, which take less time.
TOKENS, FP8_TOKENS = 4096, 16384
LONGEST = 2048  # rows that are shorter share their buckets
MOST = 24  # buckets that are kept in mind: of lengths that vary more none comes again soon


@dataclass(frozen=True)
class Bucket:
    """At most so many rows, tokens, and tokens of the longest row."""

    rows: int
    tokens: int
    longest: int

    @classmethod
    def of(cls, batch: Packed, original: int | None) -> Bucket:
        """The batch's; its longest row stays within `original`, the context before LongRoPE stretched it."""
        rows = ROWS
        while rows < len(batch.cu_seq_lens):  # one more than there are
            rows *= 4
        tokens = -batch.tokens % STEP + batch.tokens
        longest = min(power_of_two(tokens), max(LONGEST, power_of_two(batch.max_length)))
        if original and batch.max_length <= original:
            longest = min(longest, max(original, STEP))  # no model's is shorter than a step
        return cls(rows, tokens, longest)

    def fill(self, batch: Packed) -> Packed:
        """`batch` with one more row, and rows of nothing."""
        more = self.tokens - batch.tokens
        positions = torch.arange(more, device=batch.position_ids.device)[None]
        missing = self.rows + 1 - len(batch.cu_seq_lens)
        return Packed(
            input_ids=functional.pad(batch.input_ids, (0, more)),
            position_ids=torch.cat([batch.position_ids, positions], 1),
            cu_seq_lens=functional.pad(batch.cu_seq_lens, (0, missing), value=self.tokens),
            max_length=self.longest,
        )


def most_tokens(fp8: bool) -> int:
    """Of a pass that is recorded."""
    return FP8_TOKENS if fp8 else TOKENS


class Room:
    """Where recorded passes leave their results: the same place for all, since one ends before the next."""

    def __init__(self, stack: Stack) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        sizes = [source.numel() for source in stack.sources]
        found = torch.empty(sum(sizes), dtype=torch.float32, device=stack.device)
        self.found = found  # the gradients of the stack's sources, one after the other
        self.each = [
            part.view_as(source)
            for part, source in zip(torch.split(found, sizes), stack.sources, strict=True)
        ]
        self._states = torch.empty(0, stack.config.hidden_size, dtype=stack.dtype, device=stack.device)

    def states(self, tokens: int) -> torch.Tensor:
        """For the last hidden states (tokens, hidden), and then for their gradient."""
        if len(self._states) < tokens:  # who has the smaller one keeps it
            self._states = self._states.new_empty(tokens, self._states.shape[1])
        return self._states[:tokens]


class Recorded:
    """A pass of `stack` forward and one backward, for batches of one bucket."""

    def __init__(self, stack: Stack, bucket: Bucket, batch: Packed, room: Room) -> None:
        self._stack, self._bucket, self._room = stack, bucket, room
        self._batch = batch = bucket.fill(batch)
        self._states = room.states(batch.tokens)
        saved = stack.saved()
        # Once by itself, with tensors of its own: kernels are compiled and attention is planned.
        first = replace(batch, cu_seq_lens=batch.cu_seq_lens.clone())
        made, last = stack.forward_to_norm(first, saved)
        stack.backward_from_norm(torch.zeros_like(made), last, saved, first)
        del made, last
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        stack.frozen.forget()
        saved = stack.saved()
        with _recording(self._forward, room.pool):
            made, last = stack.forward_to_norm(batch, saved)
            self._states.copy_(made)
            del made
            saved.settle()
        with _recording(self._backward, room.pool):
            torch._foreach_copy_(room.each, stack.backward_from_norm(self._states, last, saved, batch))
        # What the kernels read by address, and somebody may replace:
        self._alive = (saved.places(), stack.rotary.tables())

    def forward(self, batch: Packed) -> torch.Tensor:
        """The last hidden states (T, hidden) of a batch."""
        filled = self._bucket.fill(batch)
        for name in ("input_ids", "position_ids", "cu_seq_lens"):
            getattr(self._batch, name).copy_(getattr(filled, name))
        self._forward.replay()
        return self._states[: batch.tokens].clone()

    def backward(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """The gradients of the stack's `sources` from that of the hidden states of the batch before."""
        self._states[: len(gradient)].copy_(gradient)
        self._states[len(gradient) :].zero_()
        self._backward.replay()
        self._stack.frozen.forget()
        parts = torch.split(self._room.found.clone(), [each.numel() for each in self._room.each])
        return [part.view_as(each) for part, each in zip(parts, self._room.each, strict=True)]


class Graphs:
    """`stack`, whose passes are recorded where that pays; they share their memory."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.recorded: dict[Any, Recorded | None] = {}
        self.on = stack.device.type == "cuda"
        self._room: Room | None = None
        self._token = 0.0  # bytes that a pass takes for each
        self._kept = 0  # bytes of recorded passes
        self._pass: Any = lambda: None

    def __call__(self, batch: Packed) -> torch.Tensor:
        """The last hidden states (T, hidden) of a batch, differentiable by the adapters' parameters."""
        recorded = self._recorded(batch) if self.on and torch.is_grad_enabled() else None
        if recorded is None:
            self._give_way(batch.tokens)
            return self.stack(batch)
        this = _Pass()
        self._pass = weakref.ref(this)
        function: Any = _Replayed  # untyped
        hidden: torch.Tensor = function.apply(recorded, batch, this, *self.stack.sources)
        return hidden

    def _recorded(self, batch: Packed) -> Recorded | None:
        """That of the batch's bucket, recorded now if it comes for the second time; None for the first."""
        # The last pass's gradients may still be wanted.
        if batch.tokens > most_tokens(self.stack.fp8) or self._pass() is not None:
            return None
        bucket = Bucket.of(batch, self.stack.rotary.original)
        key = (bucket, torch.are_deterministic_algorithms_enabled(), *self.stack.scales)
        if key not in self.recorded:
            if len(self.recorded) < MOST:
                self.recorded[key] = None
            return None
        found = self.recorded[key] or self._record(bucket, batch)
        if self.on:
            self.recorded[key] = found
        return found

    def _record(self, bucket: Bucket, batch: Packed) -> Recorded | None:
        """None, from now on, where the GPU has no room for it or can't record."""
        idle = _idle(self.stack.device)
        if self._room is None:  # recorded passes keep their memory, all of them the same
            self.on = torch.cuda.mem_get_info(self.stack.device)[0] > idle
            self._token = idle / batch.tokens
        if not self.on:
            return None
        self._room = self._room or Room(self.stack)
        try:
            with torch.no_grad():
                found = Recorded(self.stack, bucket, batch, self._room)
            self._kept += max(0, _idle(self.stack.device) - idle)
            return found
        except RuntimeError as error:
            self._forget()
            torch.cuda.synchronize()
            first = str(error).strip().split("\n")[0]
            warnings.warn(f"no CUDA graphs here, which costs speed in small steps: {first}", stacklevel=2)
            return None

    def _give_way(self, tokens: int) -> None:
        """Forget recorded passes, from now on, where one of more tokens needs their memory."""
        if self._room is not None and torch.is_grad_enabled():  # an evaluation keeps nothing
            there = torch.cuda.mem_get_info(self.stack.device)[0] + _idle(self.stack.device) - self._kept
            if self._token * tokens > there:
                self._forget()
                torch.cuda.empty_cache()

    def _forget(self) -> None:
        self.on, self._room = False, None
        self.recorded.clear()


class _Pass:
    """Lives as long as a pass whose gradients may still be wanted."""


class _Replayed(torch.autograd.Function):
    """`Recorded` for autograd."""

    @staticmethod
    def forward(
        ctx: Any, recorded: Recorded, batch: Packed, this: _Pass, *sources: torch.Tensor
    ) -> torch.Tensor:
        ctx.recorded, ctx.this = recorded, this
        return recorded.forward(batch)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = ctx.recorded.backward(gradients[0])
        ctx.this = None
        return None, None, None, *found


def _recording(graph: torch.cuda.CUDAGraph, pool: Any) -> Any:
    """Other threads may go on: they pin memory, and NCCL's looks at its events."""
    return torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")


def _idle(device: torch.device) -> int:
    """Bytes that PyTorch has and nothing uses: what passes took, and what recorded ones keep."""
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
