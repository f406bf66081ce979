"""Which rows each step sees: packed into blocks, shuffled anew each epoch, the same for the same seed."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import DataLoader

from train.dpo_config import Dpo
from train.examples import Encoded
from train.sections import Sft, steps_of

MEGA = 50  # batches that are sorted together by group_by_length, as in transformers' trainer_pt_utils.py


class Order:
    """The micro-batches of a run, for process number `process` of `processes` that train together."""

    def __init__(
        self, rows: Sequence[Encoded], args: Sft | Dpo, processes: int = 1, process: int = 0
    ) -> None:
        self.rows, self.args, self.processes, self.process = rows, args, processes, process
        lengths = [row.length for row in rows]
        self.blocks = pack(lengths, args.max_length) if args.packing else [[row] for row in range(len(rows))]
        self._lengths = lengths
        self._epoch = lru_cache(1)(self._shuffled)

    @property
    def steps_per_epoch(self) -> int:
        together = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return math.ceil(len(self.blocks) / (together * self.processes))

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return max(1, math.ceil(self.steps_per_epoch * self.args.num_train_epochs))

    @property
    def steps_per_evaluation(self) -> int:
        """Steps from one evaluation to the next."""
        return steps_of(self.args.eval_steps or self.steps_per_epoch, self.steps)

    def step(self, number: int) -> list[Any]:
        """This process's micro-batches of step `number`, which begins at 0."""
        return [self.batch(rows) for rows in self.micro_batches(number)[self.process :: self.processes]]

    def batch(self, rows: list[int]) -> Any:
        """A micro-batch of these rows; of one that doesn't count where there are none."""
        return collate([self.rows[row] for row in rows] or [self._nothing])

    def tokens(self, rows: list[int]) -> int:
        """How many tokens are computed for a micro-batch of these rows."""
        return sum(self._lengths[row] for row in rows)

    def trained(self, number: int) -> int:
        """What counts of step `number`, in all processes: here tokens."""
        return sum(sum(self.rows[row].mask[1:]) for rows in self.micro_batches(number) for row in rows)

    def micro_batches(self, number: int) -> list[list[int]]:
        """The rows of each micro-batch of a step; an epoch's last step may have fewer, some without rows."""
        epoch, within = divmod(number, self.steps_per_epoch)
        order, size = self._epoch(epoch), self.args.per_device_train_batch_size
        count = self.args.gradient_accumulation_steps * self.processes
        begins = (within * count * size + part * size for part in range(count))
        chosen = [order[begin : begin + size] for begin in begins]
        used = sum(map(bool, chosen))  # then up to a whole round: every process must take part in it
        rounds = math.ceil(used / self.processes) * self.processes
        return [[row for block in blocks for row in self.blocks[block]] for blocks in chosen[:rounds]]

    @property
    def _nothing(self) -> Encoded:
        """A row that doesn't count, for a process that has no blocks left in a step."""
        return Encoded(self.rows[0].ids, [0] * len(self.rows[0].ids), [])

    def _shuffled(self, epoch: int) -> list[int]:
        """The blocks in the order of this epoch."""
        generator = torch.Generator().manual_seed((self.args.seed * 1_000_003 + epoch) % 2**64)
        order: list[int] = torch.randperm(len(self.blocks), generator=generator).tolist()
        if not self.args.group_by_length:
            return order
        size = MEGA * self.args.per_device_train_batch_size
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        return [
            block for part in parts for block in sorted(part, key=lambda b: -self._lengths[self.blocks[b][0]])
        ]


def in_order(rows: Sequence[Encoded], block: int, batch: int) -> Iterator[Batch]:
    """All rows once, for evaluation: packed, `batch` blocks at a time."""
    blocks = pack([len(row.ids) for row in rows], block)
    for start in range(0, len(blocks), batch):
        yield collate([rows[row] for rows_of in blocks[start : start + batch] for row in rows_of])


IGNORED = -100  # the label of a token that isn't trained, as in torch.nn.functional.cross_entropy


def pack(lengths: Sequence[int], block: int) -> list[list[int]]:
    """Put rows of these lengths into as few blocks as best-fit decreasing gives; return the rows of each.

    Every length must be at most `block`. The longest row first, into the block that it fills best.
    """
    blocks: list[list[int]] = []
    with_space: defaultdict[int, list[list[int]]] = defaultdict(list)
    spaces: list[int] = []  # the keys of with_space that hold a block, sorted
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        at = bisect_left(spaces, lengths[row])
        if at == len(spaces):
            space, rows = block, list[int]()
            blocks.append(rows)
        else:
            space = spaces[at]
            rows = with_space[space].pop()
            if not with_space[space]:
                spaces.pop(at)
        rows.append(row)
        space -= lengths[row]
        if space:
            if not with_space[space]:
                insort(spaces, space)
            with_space[space].append(rows)
    return blocks


@dataclass(kw_only=True)
class Packed:
    """Rows one after the other, T tokens in all; positions begin at 0 with each row, which keeps them apart.

    `cu_seq_lens` (rows + 1, int32) are the rows' beginnings and the end, `max_length` the longest row; both
    were computed on the CPU, so that no step has to wait for the GPU.
    """

    input_ids: torch.Tensor  # (1, T)
    position_ids: torch.Tensor  # (1, T)
    cu_seq_lens: torch.Tensor
    max_length: int

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()


@dataclass(kw_only=True)
class Batch(Packed):
    """Packed rows to train on; `labels[0, t]` is the token that follows position t, or IGNORED."""

    labels: torch.Tensor  # (1, T)
    trained: int  # how many labels count

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            source = tensor.pin_memory() if device.type == "cuda" else tensor
            return source.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=move(self.input_ids),
            position_ids=move(self.position_ids),
            labels=move(self.labels),
            cu_seq_lens=move(self.cu_seq_lens),
        )


def collate(rows: Sequence[Encoded]) -> Batch:
    """One batch of these rows."""
    ids = [i for row in rows for i in row.ids]
    positions = [p for row in rows for p in range(len(row.ids))]
    labels: list[int] = []
    starts = [0]
    for row in rows:
        labels += [i if m else IGNORED for i, m in zip(row.ids[1:], row.mask[1:], strict=True)]
        labels.append(IGNORED)  # the last token of a row predicts nothing
        starts.append(starts[-1] + len(row.ids))
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        labels=torch.tensor([labels]),
        cu_seq_lens=torch.tensor(starts, dtype=torch.int32),
        max_length=max(len(row.ids) for row in rows),
        trained=sum(label != IGNORED for label in labels),
    )


@dataclass
class Step:
    """This process's micro-batches of a step, and how much of it counts in all processes."""

    batches: list[Any]
    trained: int


def loader(order: Order) -> DataLoader[Any]:
    """All steps of a run, one after the other; it draws no random number."""

    def made(numbers: list[int]) -> Step:
        return Step(order.step(numbers[0]), order.trained(numbers[0]))

    steps: Any = range(order.steps)
    return DataLoader(steps, batch_size=1, collate_fn=made, generator=torch.Generator())
