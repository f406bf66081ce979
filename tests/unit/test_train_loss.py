"""The loss of the trained positions, and its gradient, against torch's own cross-entropy."""

from __future__ import annotations

import pytest
import torch

from train import loss as train_loss
from train.batches import IGNORED, Batch
from train.loss import chunk, head_loss

WIDTH, VOCABULARY = 24, 57
CHUNK = 128  # positions, the fewest


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of this vocabulary would have two million positions."""
    monkeypatch.setattr(train_loss, "LOGITS", VOCABULARY * CHUNK)
    assert chunk(VOCABULARY) == CHUNK


def random_case(positions: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, head and labels, of which every third isn't trained, but for the first."""
    generator = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCABULARY, (positions,), generator=generator)
    labels[2::3] = IGNORED
    return hidden.to(dtype), weight.to(dtype), labels


def batch_of(labels: torch.Tensor) -> Batch:
    """One row with these labels; the loss reads nothing else of it."""
    ids = torch.zeros(1, len(labels), dtype=torch.int64)
    trained = int((labels != IGNORED).sum())
    starts = torch.tensor([0, len(labels)], dtype=torch.int32)
    return Batch(
        input_ids=ids,
        position_ids=torch.arange(len(labels))[None],
        labels=labels[None],
        cu_seq_lens=starts,
        max_length=len(labels),
        trained=trained,
    )


def reference(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and its gradient in fp64, all logits at once."""
    leaf = hidden.double().clone().requires_grad_()
    logits = leaf @ weight.double().T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("softcap", [0.0, 30.0, 2.0])
@pytest.mark.parametrize("positions", [1, 7, CHUNK * 3 // 2, 2 * CHUNK + 5])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_loss_and_gradient_are_torchs(
    dtype: torch.dtype, tolerance: float, positions: int, softcap: float
) -> None:
    hidden, weight, labels = random_case(positions, dtype)
    wanted, gradient = reference(hidden, weight, labels, softcap)
    leaf = hidden.clone().requires_grad_()
    loss = head_loss(leaf, weight, batch_of(labels), softcap)
    (loss / positions).backward()
    assert loss.dtype == torch.float32
    assert loss.double().item() == pytest.approx(wanted.item(), rel=tolerance)
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    wrong = (leaf.grad.double() * positions - gradient).norm() / gradient.norm()
    assert wrong < tolerance


def test_hidden_states_may_be_of_another_type_than_the_head() -> None:
    hidden, weight, labels = random_case(9, torch.float32)
    leaf = hidden.clone().requires_grad_()
    head_loss(leaf, weight.bfloat16(), batch_of(labels), 0.0).backward()
    _, gradient = reference(hidden, weight, labels, 0.0)
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32
    assert (leaf.grad - gradient).norm() < 0.02 * gradient.norm()


def test_without_a_gradient_none_is_computed() -> None:
    hidden, weight, labels = random_case(9, torch.float32)
    with torch.no_grad():
        loss = head_loss(hidden, weight, batch_of(labels), 0.0)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(reference(hidden, weight, labels, 0.0)[0].item(), rel=1e-5)


def test_no_trained_position_is_a_loss_of_zero() -> None:
    """A process that has no rows left in a step still takes part in it."""
    leaf = torch.randn(5, WIDTH, requires_grad=True)
    loss = head_loss(leaf, torch.randn(VOCABULARY, WIDTH), batch_of(torch.full((5,), IGNORED)), 0.0)
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()
