"""Whether a base reads the rows at all, by its losses before the first step on some of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from train.checks import Checks, check_bos_loss, check_first_loss
from train.example import Encoded

ROWS, TOKENS = 16, 256  # that are looked at; the second of each row

Loss = Callable[[list[Encoded]], float]  # mean, in nats a token


def check_reading(checks: Checks, rows: Sequence[Encoded], bos_id: int | None, loss: Loss) -> None:
    """Compare the loss on rows with that of their tokens in no order, and after a BOS where they lack one.

    `bos_id` is None where the base has none, or ends replies with it.
    """
    some = [row.ids[:TOKENS] for row in rows[:ROWS]]
    first = loss([_whole(ids) for ids in some])
    chance = random.Random(0)
    check_first_loss(checks, first, loss([_whole(_shuffled(ids, chance)) for ids in some]))
    if bos_id is not None and all(ids[0] != bos_id for ids in some):
        check_bos_loss(checks, first, loss([_begun(ids, bos_id) for ids in some]))


def _whole(ids: list[int]) -> Encoded:
    return Encoded(ids, [1] * len(ids), [])


def _shuffled(ids: list[int], chance: random.Random) -> list[int]:
    """The ids in no order, but for the first, which may be a BOS."""
    rest = ids[1:]
    chance.shuffle(rest)
    return [*ids[:1], *rest]


def _begun(ids: list[int], bos_id: int) -> Encoded:
    """The ids after a BOS, as many as before, since that fits a block; the first isn't compared."""
    return Encoded([bos_id, *ids[:-1]], [0, 0, *[1] * len(ids)][: len(ids)], [])
