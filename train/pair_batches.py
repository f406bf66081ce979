"""Pairs of a chosen and a rejected answer as batches, padded on the right: what TRL's DPOTrainer reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from train.batches import Order
from train.examples import Encoded, Example, Loaded

Logps = tuple[float, float]  # of the chosen and of the rejected answer, as the reference has them; in nats


@dataclass
class PairBatch:
    """B pairs as 2 B rows of L tokens, the chosen ones first; `completion_mask` is 1 where a token counts.

    `reference` (2, B) are the reference's log probabilities of the answers, where they are known.
    """

    input_ids: torch.Tensor  # (2 B, L)
    attention_mask: torch.Tensor  # (2 B, L)
    completion_mask: torch.Tensor  # (2 B, L)
    tokens: int  # without the padding
    trained: int  # pairs that count
    reference: torch.Tensor | None = None

    def to(self, device: torch.device) -> PairBatch:
        """The same on a device."""
        parts = {name: getattr(self, name) for name in ("input_ids", "attention_mask", "completion_mask")}
        moved: dict[str, Any] = {name: part.to(device, non_blocking=True) for name, part in parts.items()}
        reference = None if self.reference is None else self.reference.to(device)
        return replace(self, **moved, reference=reference)

    def inputs(self) -> dict[str, torch.Tensor]:
        """What TRL's `DataCollatorForPreference` gives (trl/trainer/dpo_trainer.py)."""
        names = ("input_ids", "attention_mask", "completion_mask")
        found: dict[str, torch.Tensor] = {name: getattr(self, name) for name in names}
        if self.reference is not None:
            found["ref_chosen_logps"], found["ref_rejected_logps"] = self.reference
        return found


def collate_pairs(rows: Sequence[Encoded], reference: Sequence[Logps] = (), trained: int = -1) -> PairBatch:
    """One batch of these pairs; all of them count, or `trained`."""
    both = [*rows, *(row.rejected for row in rows if row.rejected)]

    def padded(columns: Sequence[Sequence[int]]) -> torch.Tensor:
        return pad_sequence([torch.tensor(column) for column in columns], batch_first=True)

    return PairBatch(
        padded([row.ids for row in both]),
        padded([[1] * len(row.ids) for row in both]),
        padded([row.mask for row in both]),
        sum(len(row.ids) for row in both),
        len(rows) if trained < 0 else trained,
        torch.tensor(list(reference)).T if reference else None,
    )


class PairOrder(Order):
    """The micro-batches of a run on preferences; what counts are pairs, whatever their length.

    `reference` has the reference's log probabilities of the rows, where they are computed beforehand.
    """

    reference: Mapping[int, Logps] = {}

    @property
    def visited(self) -> list[int]:
        """The rows that the run comes to, in their own order."""
        if self.steps >= self.steps_per_epoch:
            return list(range(len(self.rows)))
        batches = (rows for step in range(self.steps) for rows in self.micro_batches(step))
        return sorted(row for rows in batches for row in rows)

    def batch(self, rows: list[int]) -> Any:
        """A micro-batch of these pairs; of one that doesn't count where there are none."""
        chosen = rows or [min(self.reference, default=0)]
        known = [self.reference[row] for row in chosen] if self.reference else ()
        return collate_pairs([self.rows[row] for row in chosen], known, len(rows))

    def tokens(self, rows: list[int]) -> int:
        """Those of the padding, too."""
        return 2 * len(rows) * super().tokens([max(rows, key=self._lengths.__getitem__)]) if rows else 0

    def trained(self, number: int) -> int:
        """How many pairs of step `number` count, in all processes."""
        return sum(map(len, self.micro_batches(number)))


def pairs_in_order(
    rows: Sequence[Encoded], batch: int, reference: Sequence[Logps] = ()
) -> Iterator[PairBatch]:
    """All pairs once, `batch` at a time."""
    for start in range(0, len(rows), batch):
        part = slice(start, start + batch)
        yield collate_pairs(rows[part], reference[part])


def pair_of(
    example: Example, chosen: Sequence[Encoded], rejected: Sequence[Encoded], loaded: Loaded
) -> list[Encoded]:
    """The pair of two encoded answers; nothing, and a count, of answers that can't be compared."""
    reason = ""
    if len(chosen) != 1 or len(rejected) != 1:
        reason = "answers of several turns, of which the template edits earlier ones"
    elif chosen[0].ids == rejected[0].ids:
        reason = "chosen and rejected are the same for this base"
    if not reason:
        return [replace(chosen[0], rejected=rejected[0])]
    loaded.leave_out(reason, example.row)
    loaded.examples = [other for other in loaded.examples if other.row != example.row]
    return []
