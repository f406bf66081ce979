"""Recorded passes on CUDA: what a graph gives is what the same kernels give launch by launch."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU, and there is none", allow_module_level=True)

from bench.train_documents import documents
from bench.train_models import random_base
from tests.gpu.test_cuda import CONFIGS, CUDA, recipe, with_random_b
from train.batches import Batch, collate
from train.fused.fuse import fused
from train.fused.graphs import Bucket, Graphs
from train.model import Adapted


def graphs_of(adapted: Adapted) -> Graphs:
    forward = fused(adapted.base)
    assert forward is not None
    return forward.graphs(CUDA)


def results(adapted: Adapted, batches: list[Batch]) -> list[torch.Tensor]:
    """Losses and gradients of all batches, one after the other, with a look at one in between."""
    found = []
    for batch in batches:
        adapted.zero_grad()
        loss = adapted(batch)
        loss.backward()
        with torch.no_grad():
            adapted(batches[0])
        found.append(loss.detach())
        for parameter in adapted.parameters_to_train():
            assert parameter.grad is not None
            found.append(parameter.grad.clone())
            parameter.data.add_(parameter.grad, alpha=-1e-4)  # as an optimizer does
    return found


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("precision", ["16-bit", "fp8"])
def test_a_recorded_pass_is_the_pass(family: str, memory: str, precision: str) -> None:
    wanted = recipe(memory).model_copy(update={"precision": precision})
    rows = documents(300, 1000, 16)
    batches = [collate(rows[start : start + 4]).to(CUDA) for start in range(0, 16, 4)]
    found = []
    for records in (False, True):
        adapted = with_random_b(Adapted(random_base(wanted, CUDA, CONFIGS[family]), wanted, CUDA)).train()
        graphs_of(adapted).on = records
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.append(results(adapted, batches * 2))
        assert any(graphs_of(adapted).recorded.values()) == records
    near = 1e-2 if precision == "16-bit" else 3e-2  # sums of other lengths are rounded otherwise
    for number, (one, other) in enumerate(zip(*found, strict=True)):
        error = (one - other).norm() / other.norm()
        assert error < near, f"{number}: {error:.4f}"


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_who_leaves_fp8_goes_on_as_one_in_16_bit_and_its_memory_is_free(memory: str) -> None:
    exact = recipe(memory)
    batches = [collate(documents(300, 1000, 4)).to(CUDA)] * 3

    def made(precision: str) -> Adapted:
        wanted = exact.model_copy(update={"precision": precision})
        return with_random_b(Adapted(random_base(wanted, CUDA, CONFIGS["phi3"]), wanted, CUDA)).train()

    adapted = made("fp8")
    stack = weakref.ref(graphs_of(adapted).stack)
    weights = {name: part.detach().clone() for name, part in adapted.named_parameters() if part.requires_grad}
    results(adapted, batches)
    assert any(graphs_of(adapted).recorded.values())
    reserved = torch.cuda.memory_reserved()
    adapted.leave_fp8()
    assert stack() is None
    assert torch.cuda.memory_reserved() < reserved
    for name, part in adapted.named_parameters():
        if part.requires_grad:
            part.data.copy_(weights[name])
    found, wanted = results(adapted, batches), results(made("16-bit"), batches)
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        error = (one - other).norm() / other.norm()
        assert error < 1e-3, f"{number}: {error:.5f}"


@pytest.mark.parametrize("precision", ["16-bit", "fp8"])
def test_recorded_passes_give_way_to_a_longer_one_that_wants_their_memory(precision: str) -> None:
    wanted = recipe("fast").model_copy(update={"precision": precision})
    adapted = with_random_b(Adapted(random_base(wanted, CUDA, CONFIGS["phi3"]), wanted, CUDA)).train()
    short, long, longer = (collate(documents(300, 1000, count)).to(CUDA) for count in (2, 12, 14))
    assert len({Bucket.of(batch, None) for batch in (short, long, longer)}) == 3
    results(adapted, [short] * 3)
    graphs = graphs_of(adapted)
    results(adapted, [long])  # there is room beside them
    assert any(graphs.recorded.values())
    graphs._token = 1e12
    again = results(adapted, [short])  # one that is recorded needs no more
    assert any(graphs.recorded.values())
    results(adapted, [longer])
    assert not graphs.recorded
    assert not graphs._room
    assert all(torch.isfinite(each).all() for each in again + results(adapted, [short] * 3))
