"""Memory and time of a micro-batch by train/fused.

The constants that arithmetic doesn't give were fitted on one H200.
"""

from __future__ import annotations

from train.gpus import Gpu
from train.loss import chunk
from train.recipe import Recipe
from train.shape import Load, Shape

SUSTAINED = 0.92  # of the rate of one product alone: a GPU that works on end is slowed by its power limit
SHORT = 4.0  # times slower is attention to rows of some hundred tokens
PASSES = 5.5  # times that an element of a layer's tensors is read or written, forward and backward
PASSES_AGAIN = 1.5  # and to compute the wide ones again
LAUNCH = 1.1e-3  # seconds that the processor takes to launch one layer, forward and backward
RESERVE = 0.35e9  # workspaces


def _narrow(shape: Shape) -> float:
    """Bytes a token and layer of the input, the attention's result and the sum of both."""
    return 2 * (2 * shape.hidden + shape.query)


def _wide(shape: Shape) -> float:
    """Bytes a token and layer of queries, keys and values, and of gate and up."""
    return 2 * (shape.query + 2 * shape.key + 2 * shape.intermediate)


def activations(shape: Shape, recipe: Recipe, load: Load) -> float:
    """Bytes beside weights and optimizer at the peak: in the backward pass, or at the head."""
    token = load.most_tokens
    here = 2 * (5 * shape.hidden + shape.intermediate)  # gradients and a norm, while a layer's are made
    if recipe.fast:
        decoded = 2.0 * shape.weights if recipe.bnb or recipe.gptq else 0
        kept = shape.layers * (_narrow(shape) + _wide(shape)) * token + here * token
    else:
        decoded = 2 * shape.weights / shape.layers if recipe.bnb or recipe.gptq else 0
        kept = (2 * _narrow(shape) + _wide(shape) + here) * token
    positions = min(chunk(shape.vocabulary), load.most_trained)
    head = 2 * positions * shape.vocabulary + 6 * shape.hidden * token
    if recipe.fast:
        return decoded + kept + head + RESERVE
    return decoded + max(kept, head) + RESERVE


def seconds(shape: Shape, recipe: Recipe, load: Load, gpu: Gpu, flops: float) -> float:
    """Seconds of one micro-batch whose tokens take `flops` each."""
    again = 0.0
    if not recipe.fast:
        names = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")
        again = 2.0 * sum(layer.elements for layer in shape.linears if layer.name in names)
    attention = (SHORT - 1) * 3.5 * 2 * load.longest * shape.query * shape.layers
    products = (flops + again + attention) / (SUSTAINED * gpu.flops)
    passes = PASSES if recipe.fast else PASSES + PASSES_AGAIN
    traffic = shape.layers * (_narrow(shape) + _wide(shape)) * passes / gpu.bandwidth
    decoding = 0.0 if recipe.fast else 2 * 2.6 * shape.weights / gpu.bandwidth
    return max(load.tokens * (products + traffic) + decoding, LAUNCH * shape.layers)
