"""Rows into blocks of a fixed length, and blocks into batches without any padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from train.example import Encoded

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


@dataclass
class Batch:
    """Rows one after the other, T tokens in all; positions begin at 0 with each row, which keeps them apart.

    `labels[0, t]` is the token that follows position t, or IGNORED. `cu_seq_lens` (rows + 1, int32) are the
    rows' beginnings and the end, `max_length` the longest row; both were computed on the CPU, so that no step
    has to wait for the GPU.
    """

    input_ids: torch.Tensor  # (1, T)
    position_ids: torch.Tensor  # (1, T)
    labels: torch.Tensor  # (1, T)
    cu_seq_lens: torch.Tensor
    max_length: int
    trained: int  # how many labels count

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            source = tensor.pin_memory() if device.type == "cuda" else tensor
            return source.to(device, non_blocking=True)

        parts = (self.input_ids, self.position_ids, self.labels, self.cu_seq_lens)
        ids, positions, labels, starts = map(move, parts)
        return Batch(ids, positions, labels, starts, self.max_length, self.trained)

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()


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
        torch.tensor([ids]),
        torch.tensor([positions]),
        torch.tensor([labels]),
        torch.tensor(starts, dtype=torch.int32),
        max(len(row.ids) for row in rows),
        sum(label != IGNORED for label in labels),
    )
