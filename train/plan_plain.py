"""Memory and time of a micro-batch by transformers and PEFT.

The constants that arithmetic doesn't give were fitted on one H200.
"""

from __future__ import annotations

from collections.abc import Sequence

from train.layers import Linears, adapted_layers
from train.loss import chunk
from train.recipe import Recipe
from train.shape import ATTENTION_IN, MLP_IN, Gpu, Load, Shape

AROUND_ADAPTERS = (
    38.0  # bytes moved by small kernels, a token and element of an adapted layer's in- and output
)
AROUND_HEADS = (
    290.0  # likewise around attention: rotation, copies and attention itself, an element of q and k
)
PER_LAYER = 2.3e-3  # seconds of a layer in a micro-batch that don't depend on its tokens: NF4, small kernels
# Seconds that the processor takes to launch one pass through a layer: between the H200's computer and the
# H100's, where small batches took 11 % less and 15 % more than this says.
LAUNCH = 1.7e-3
LAUNCH_ADAPTER = 0.25e-3  # and one adapter in it; as much again for its dropout
AGAIN = 1.25  # times what a layer keeps, while it is computed again and its gradients are made
RESERVE = 0.25e9  # workspaces, the context's own buffers
LOGIT, CAPPED = 2 + 2, 8  # bytes a logit of a chunk, and those of a soft cap


def _saved_per_token(shape: Shape, names: Sequence[str]) -> float:
    """Bytes of one layer that the backward pass needs, with adapters on the layers `names`.

    Two norms (fp32), queries, keys and values before and after rotation, attention's output, the gate, its
    activation and the other half; and the inputs of the adapters.
    """
    inputs = shape.hidden * (any(name in ATTENTION_IN for name in names))
    inputs += shape.hidden * (any(name in MLP_IN for name in names))
    inputs += shape.intermediate * ("down_proj" in names)
    attention = 4 * shape.query + 6 * shape.key + 2 * shape.query
    return 8 * shape.hidden + attention + 6 * shape.intermediate + 2 * inputs


def activations(shape: Shape, recipe: Recipe, load: Load) -> float:
    """Bytes beside weights and optimizer at the peak.

    That is at the end of the forward pass, or where a layer is computed again.
    """
    there = adapted_layers(recipe.lora, shape.linears)
    names = [layer.name for layer in there]
    layer = (_saved_per_token(shape, names) + _dropout_per_token(shape, recipe, there)) * load.most_tokens
    positions = min(chunk(shape.vocabulary), load.most_trained)
    logit = LOGIT + CAPPED * shape.softcap
    head = positions * shape.vocabulary * logit + 4 * shape.hidden * load.most_trained
    if recipe.fast:
        return 1.035 * layer * shape.layers + head + RESERVE
    return 2 * shape.hidden * load.most_tokens * shape.layers + max(head, AGAIN * layer) + RESERVE


def _dropout_per_token(shape: Shape, recipe: Recipe, there: Sequence[Linears]) -> float:
    """Bytes of one layer that dropout keeps: a mask of each adapted layer's input."""
    if not recipe.lora.lora_dropout:
        return 0.0
    inputs = sum(layer.in_features * layer.count for layer in there)
    return inputs / shape.layers


def seconds(shape: Shape, recipe: Recipe, load: Load, gpu: Gpu, flops: float) -> float:
    """Seconds of one micro-batch whose tokens take `flops` each."""
    passes = 2 if recipe.fast else 3
    adapted = adapted_layers(recipe.lora, shape.linears)
    products = flops + (0 if recipe.fast else 2 * shape.weights)
    around = sum((layer.in_features + layer.out_features) * layer.count for layer in adapted)
    heads = (shape.query + shape.key) * shape.layers
    traffic = (AROUND_ADAPTERS * around + AROUND_HEADS * heads) * passes / 2
    busy = load.tokens * (products / gpu.flops + traffic / gpu.bandwidth) + PER_LAYER * shape.layers
    adapters = len(adapted) * (2 if recipe.lora.lora_dropout else 1)
    launches = (LAUNCH + LAUNCH_ADAPTER * adapters) * shape.layers * passes
    return max(busy, launches)
