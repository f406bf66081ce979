"""What `fully_shard` changes in the plan: a card's part of the weights, and what is gathered."""

from __future__ import annotations

from train.shape import Gpu, Shape

# Gathered layers at a time, packed: the one that works, the next, and the buffer that it arrives in.
AT_ONCE = 3
LINK = 0.5  # of the advertised rate from card to card, both ways of a ring


def stored(shape: Shape, packed: float, scales: float, cards: int) -> float:
    """Bytes of weights on each card at rest.

    `packed` and `scales`: bytes of a linear layer's weight, of which only the first are shared out.
    """
    return (shape.weights * packed + shape.other * 2) / cards + shape.weights * scales


def gathered(shape: Shape, packed: float) -> float:
    """Bytes of what is whole for a while: layers, or the head."""
    return max(AT_ONCE * shape.weights * packed / shape.layers, 2 * shape.vocabulary * shape.hidden)


def seconds(shape: Shape, packed: float, cards: int, gpu: Gpu) -> float:
    """Seconds of a micro-batch's gathering: each layer forward and backward, the embeddings and the head."""
    moved = 2 * shape.weights * packed + 2 * 2 * shape.vocabulary * shape.hidden
    return moved * (cards - 1) / cards / (LINK * gpu.link)


def host(shape: Shape, packed: float, scales: float, cards: int) -> float:
    """Bytes of the computer's memory while the base is loaded: all processes have all of it, packed."""
    return cards * stored(shape, packed, scales, 1)
