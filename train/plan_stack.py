"""Memory and time of a micro-batch by train/fused.

The constants that arithmetic doesn't give were fitted on one H200, to three models and 256 to 16,384 tokens a
document: the speed of all 20 points within 6 % (bench/results/train-curve.json and train.json). Other GPUs
are taken to reach the same shares of their rates, with FlashAttention 2, and their processors to be alike.
"""

from __future__ import annotations

from train.fused.cudnn_attention import power_of_two
from train.fused.graphs import most_tokens
from train.layers import adapted_layers
from train.loss import chunk
from train.recipe import Recipe
from train.shape import ATTENTION_IN, MLP_IN, Gpu, Load, Shape

SUSTAINED = 0.912  # of the rate of one product alone: a GPU that works on end is slowed by its power limit
ATTENTION = 0.626  # of that rate, by cuDNN
PASSES = 13.5  # times that a byte of what is kept is moved beside the products, adapters included
PASSES_AGAIN = 1.74  # and to compute the wide tensors again
FAST, LEAN = 3.02e-3, 3.4e-3  # seconds that a processor takes to launch a layer's kernels
# In FP8, of one H100, four models (bench/results/train-fp8.json): how many times as fast products with frozen
# matrices are, operands included, and seconds to launch the kernels of one of a layer's linear layers
FP8, FAST_FP8, LEAN_FP8 = 1.9, 1.05e-3, 1.5e-3
RECORDED = 0.01  # seconds that a pass takes whose kernels are recorded, however few tokens it has
HALF, NF4_READ = 2.0, 0.52  # bytes of a weight, decoded and not
RESERVE = 0.25e9  # workspaces


def _narrow(shape: Shape) -> float:
    """Bytes a token and layer of the input, the attention's result, and the sum or what MLP adds to it."""
    return 2 * (2 * shape.hidden + shape.query)


def _wide(shape: Shape) -> float:
    """Bytes a token and layer of two norms; queries, keys and values; gate and up; what is normed after."""
    norms = 4 * shape.hidden if shape.norms_after else 2 * shape.hidden
    return 2 * (norms + shape.query + 2 * shape.key + 2 * shape.intermediate)


def activations(shape: Shape, recipe: Recipe, load: Load) -> float:
    """Bytes beside weights and optimizer at the peak: in the backward pass, or at the head."""
    token = load.most_tokens
    adapters = sum(layer.count for layer in adapted_layers(recipe.lora, shape.linears))
    small = (2 * recipe.lora.r * adapters + 4 * shape.layers * shape.heads) * token  # kept in either mode
    here = 2 * (4 * shape.hidden + shape.intermediate)  # gradients, while a layer's are made
    stored = not (recipe.bnb or recipe.gptq or recipe.precision == "fp8")  # as it is used
    decoded = 0.0 if stored else 2.0 * shape.weights  # in FP8 a byte, both ways round
    positions = min(chunk(shape.vocabulary), load.most_trained)
    head = 2 * positions * shape.vocabulary + 6 * shape.hidden * token
    if recipe.fast:
        kept = shape.layers * (_narrow(shape) + _wide(shape)) * token + here * token
        return decoded + kept + small + head + RESERVE
    kept = (2 * _narrow(shape) + _wide(shape) + here) * token
    return decoded / shape.layers + max(kept, head) + small + RESERVE


def host(shape: Shape, recipe: Recipe, load: Load) -> float:
    """Bytes of pinned memory for what lean keeps of all layers but the last; PyTorch gives powers of two."""
    if recipe.fast:
        return 0.0
    widths = (shape.hidden, shape.query, shape.hidden)  # see `_narrow`
    blocks = (power_of_two(2 * width * int(load.most_tokens)) for width in widths)
    return float((shape.layers - 1) * sum(blocks))


def seconds(shape: Shape, recipe: Recipe, load: Load, gpu: Gpu, flops: float) -> float:
    """Seconds of one micro-batch whose tokens take `flops` each."""
    again = 0.0
    if not recipe.fast:
        names = ATTENTION_IN + MLP_IN
        again = 2.0 * sum(layer.elements for layer in shape.linears if layer.name in names)
    attention = 3.5 * 2 * shape.attention(load.longest)
    rate = SUSTAINED * gpu.flops
    saved = (1 - 1 / FP8) * (4.0 * shape.weights + again) if recipe.precision == "fp8" else 0.0
    products = (flops + again - saved + (1 / ATTENTION - 1) * attention) / rate
    passes = PASSES if recipe.fast else PASSES + PASSES_AGAIN
    bytes_moved = shape.layers * (_narrow(shape) + _wide(shape)) * passes
    decoding = 0.0 if recipe.fast else 2 * (HALF + NF4_READ) * shape.weights / gpu.bandwidth
    work = load.tokens * (products + bytes_moved / gpu.bandwidth) + decoding
    return max(work, launching(shape, recipe, load))


def launching(shape: Shape, recipe: Recipe, load: Load) -> float:
    """Seconds that a processor takes to launch a micro-batch's kernels, the least that one takes."""
    if load.tokens <= most_tokens(recipe.precision == "fp8"):
        return RECORDED
    if recipe.precision == "fp8":
        return (FAST_FP8 if recipe.fast else LEAN_FP8) * sum(layer.count for layer in shape.linears)
    return (FAST if recipe.fast else LEAN) * shape.layers
