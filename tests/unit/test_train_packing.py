"""Blocks and batches: no row is lost, repeated or cut, and every process sees its share and no more."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from train.batches import IGNORED, MEGA, Batch, Order, collate, in_order, pack
from train.examples import Encoded
from train.sections import Sft

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed; run: make test")
st = hypothesis.strategies


def rows_of(lengths: Sequence[int]) -> list[Encoded]:
    """Rows whose every token is the row's number; the second half of each is trained."""
    return [
        Encoded([n] * size, [int(2 * t >= size) for t in range(size)], []) for n, size in enumerate(lengths)
    ]


def lengths_like_chats(count: int, seed: int = 0) -> list[int]:
    """Log-normal: most are short and a few fill a block of 2,048."""
    draw = random.Random(seed)
    return [min(2048, 1 + int(draw.lognormvariate(5.3, 0.9))) for _ in range(count)]


def seen(batches: Sequence[Batch], rows: Sequence[Encoded]) -> Counter[int]:
    """Which rows are in the batches, by number; each is whole and its labels are its own."""
    found: Counter[int] = Counter()
    for batch in batches:
        assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (1, batch.tokens)
        starts = batch.cu_seq_lens.tolist()
        assert starts[-1] == batch.tokens
        assert max(b - a for a, b in itertools.pairwise(starts)) == batch.max_length
        trained = 0
        for begin, end in itertools.pairwise(starts):
            ids, labels = batch.input_ids[0, begin:end].tolist(), batch.labels[0, begin:end].tolist()
            assert batch.position_ids[0, begin:end].tolist() == list(range(end - begin))
            row = rows[ids[0]]
            assert ids == row.ids
            assert labels[-1] == IGNORED
            if any(label != IGNORED for label in labels):
                wanted = zip(row.ids[1:], row.mask[1:], strict=True)
                assert labels[:-1] == [i if m else IGNORED for i, m in wanted]
                found[ids[0]] += 1
            trained += sum(label != IGNORED for label in labels)
        assert batch.trained == trained
    return found


@hypothesis.given(st.lists(st.integers(1, 64), max_size=200), st.integers(64, 300))
def test_packing_loses_and_repeats_nothing(lengths: list[int], block: int) -> None:
    blocks = pack(lengths, block)
    assert sorted(row for rows in blocks for row in rows) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in rows) for rows in blocks]
    assert all(0 < total <= block for total in sums)
    # No two blocks would have fitted into one.
    assert sum(sorted(sums)[:2]) > block or len(sums) < 2


@pytest.mark.parametrize("seed", range(5))
def test_packing_fills_the_blocks(seed: int) -> None:
    lengths = lengths_like_chats(3000, seed)
    blocks = pack(lengths, 2048)
    assert sum(lengths) / (2048 * len(blocks)) > 0.97


def test_packing_takes_no_time() -> None:
    assert len(pack([1] * 100_000, 2048)) == math.ceil(100_000 / 2048)


def test_a_row_predicts_nothing_of_the_next() -> None:
    batch = collate([Encoded([5, 6, 7], [0, 1, 1], []), Encoded([8, 9], [1, 1], [])])
    assert batch.labels.tolist() == [[6, 7, IGNORED, 9, IGNORED]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.cu_seq_lens.tolist() == [0, 3, 5]
    assert (batch.trained, batch.tokens, batch.max_length) == (3, 5, 3)


SETTINGS: list[dict[str, Any]] = [
    {"packing": True},
    {"packing": False, "per_device_train_batch_size": 3},
    {"packing": False, "group_by_length": True, "gradient_accumulation_steps": 4},
    {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 5},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_epoch_holds_each_row_once(settings: dict[str, Any], processes: int) -> None:
    rows, sft = rows_of(lengths_like_chats(97)), Sft(**settings)
    orders = [Order(rows, sft, processes, process) for process in range(processes)]
    for epoch in range(2):
        found: Counter[int] = Counter()
        for number in range(orders[0].steps_per_epoch):
            step = epoch * orders[0].steps_per_epoch + number
            parts = [order.step(step) for order in orders]
            # All processes take the same number of batches, or some would wait for the others forever.
            assert len({len(part) for part in parts}) == 1
            assert 1 <= len(parts[0]) <= sft.gradient_accumulation_steps
            together = [batch for part in parts for batch in part]
            assert {order.trained(step) for order in orders} == {sum(batch.trained for batch in together)}
            found += seen(together, rows)
        assert found == Counter(range(len(rows)))


def test_two_processes_see_in_a_step_what_one_sees_in_two_batches() -> None:
    rows = rows_of(lengths_like_chats(101))
    alone = Order(rows, Sft(gradient_accumulation_steps=2))
    pair = [Order(rows, Sft(), 2, process) for process in range(2)]
    assert alone.steps_per_epoch == pair[0].steps_per_epoch
    for number in range(2 * alone.steps_per_epoch):
        both = [batch for order in pair for batch in order.step(number)]
        assert seen(alone.step(number), rows) == seen(both, rows)
        assert alone.trained(number) == pair[0].trained(number)


def ids_of(order: Order, steps: range) -> list[list[int]]:
    return [batch.input_ids[0].tolist() for number in steps for batch in order.step(number)]


def test_the_order_is_the_seeds_and_changes_with_the_epoch() -> None:
    rows = rows_of(lengths_like_chats(64))
    order, again, other = (Order(rows, Sft(seed=seed, packing=False)) for seed in (3, 3, 4))
    steps = order.steps_per_epoch
    first, second = ids_of(order, range(steps)), ids_of(order, range(steps, 2 * steps))
    assert first != second
    assert first != ids_of(other, range(steps))
    # A run that goes on begins in the middle, in whichever epoch.
    assert ids_of(again, range(steps, 2 * steps)) == second
    assert ids_of(again, range(steps)) == first


def test_group_by_length_sorts_within_megabatches() -> None:
    lengths = lengths_like_chats(3 * MEGA * 2 + 7)
    sft = Sft(packing=False, group_by_length=True, per_device_train_batch_size=2)
    order = Order(rows_of(lengths), sft)
    longest = [order.step(number)[0].max_length for number in range(order.steps_per_epoch)]
    parts = [longest[start : start + MEGA] for start in range(0, len(longest), MEGA)]
    assert len(parts) == 4
    assert all(part == sorted(part, reverse=True) for part in parts)
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"num_train_epochs": 3}, 39),
        ({"num_train_epochs": 0.5}, 7),
        ({"num_train_epochs": 0.001}, 1),
        ({"num_train_epochs": 3, "max_steps": 5}, 5),
        ({"gradient_accumulation_steps": 8}, 2),
    ],
)
def test_steps(settings: dict[str, Any], steps: int) -> None:
    rows = rows_of([10] * 50)
    assert Order(rows, Sft(packing=False, per_device_train_batch_size=4, **settings)).steps == steps


def test_evaluation_sees_each_row_once() -> None:
    rows = rows_of(lengths_like_chats(90))
    batches = list(in_order(rows, 2048, 3))
    assert seen(batches, rows) == Counter(range(90))
    assert all(batch.tokens <= 3 * 2048 for batch in batches)
