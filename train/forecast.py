"""What a run will take, from the base's config alone: memory, tokens a second, minutes.

Counted: stored weights, adapter with gradients and optimizer; and by plan_stack.py or plan_plain.py, as the
run will train, what the backward pass needs of each layer, matrix products, memory traffic around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from train import plan_plain, plan_sharded, plan_stack
from train.fused.supports import allows, lacking, setting
from train.layers import trainable
from train.recipe import LAST_IN_16_BIT, Recipe
from train.shape import Gpu, Load, Shape

GB = 1e9
# bytes of one weight: NF4 with a scale for each 64 weights (arXiv 2305.14314, section 3), int8, 16 bit
NF4, NF4_DOUBLE, INT8, HALF = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256), 1.0, 2.0
GPTQ = 0.5 + 2.5 / 128
STATES = {"sgd": 0, "adafactor": 0, "lion": 1, "adagrad": 1, "rmsprop": 1, "ademamix": 3}  # of AdamW: 2
PAGED = 2e-9  # seconds a parameter and step of a paged optimizer
FITS = 0.92  # of a GPU's memory: the rest is its context's, and what lies between the allocator's blocks


@dataclass(frozen=True)
class Plan:
    """The forecast for one micro-batch."""

    trainable: int
    memory_gb: float
    host_gb: float  # of the computer's memory, which the GPU copies to and from
    tokens_per_s: float
    waits: bool  # the GPU, for the processor to launch its kernels
    flops_per_token: float


def forecast(shape: Shape, recipe: Recipe, load: Load, gpu: Gpu, cards: int = 1) -> Plan:
    """Forecast memory at its peak and the speed of steps; of each of the `cards` that share a base out."""
    adapter = _adapter(shape, recipe)
    flops = flops_per_token(shape, load, adapter)
    way = plan_stack if by_hand(shape, recipe, gpu) else plan_plain
    first, last = (way.seconds(shape, phase, load, gpu, flops) for phase in _phases(recipe))
    seconds = first + LAST_IN_16_BIT * (last - first)
    waits = way is plan_stack and first <= plan_stack.launching(shape, recipe, load)
    host = plan_stack.host(shape, recipe, load) if way is plan_stack else 0.0
    if recipe.fully_shard:
        packed, scales = _parts(recipe)
        seconds = max(seconds, plan_sharded.seconds(shape, packed, cards, gpu))
        host = plan_sharded.host(shape, packed, scales, cards)
    if recipe.args.optim.startswith("paged"):
        seconds += PAGED * adapter / recipe.args.gradient_accumulation_steps
    return Plan(
        trainable=adapter,
        memory_gb=memory(shape, recipe, load, gpu, cards) / GB,
        host_gb=host / GB,
        tokens_per_s=load.tokens / seconds,
        waits=waits,
        flops_per_token=flops,
    )


def memory(shape: Shape, recipe: Recipe, load: Load, gpu: Gpu | None, cards: int = 1) -> float:
    """Bytes at the peak."""
    way = plan_stack if by_hand(shape, recipe, gpu) else plan_plain
    stored: float = shape.weights * _weight_bytes(recipe) + shape.other * 2
    if recipe.fully_shard:
        packed, scales = _parts(recipe)
        stored = plan_sharded.stored(shape, packed, scales, cards) + plan_sharded.gathered(shape, packed)
    # parameters, gradients, optimizer, and copies in 16 bit
    training = _adapter(shape, recipe) * (4 + 4 + _optimizer_bytes(recipe.args.optim) + 2)
    needed: float = stored + training + max(way.activations(shape, phase, load) for phase in _phases(recipe))
    return needed


def settle(
    recipe: Recipe, shape: Shape, load: Load, gpu: Gpu | None, available: float, cards: int = 1
) -> Recipe:
    """The recipe with `memory: auto` decided for so many free bytes: fast if the plan says that it fits."""
    if recipe.memory != "auto":
        return recipe
    fast = recipe.model_copy(update={"memory": "fast"})
    fits = memory(shape, fast, load, gpu, cards) < FITS * available
    return fast if fits else recipe.model_copy(update={"memory": "lean"})


def by_hand(shape: Shape, recipe: Recipe, gpu: Gpu | None) -> bool:
    """Whether the run's passes will be those of train/fused; an unknown GPU is taken for a new one."""
    return shape.by_hand and allows(recipe) and (gpu is None or gpu.ampere)


def unfused(shape: Shape, recipe: Recipe, device: torch.device | None = None) -> str:
    """The line for a run that train/fused leaves to transformers and PEFT, and why; empty for others.

    `device`: where it trains, on a CPU without a line; None for any newer GPU.
    """
    if device and device.type != "cuda":
        return ""
    key = setting(recipe)
    why = shape.obstacle or (f"{key} is set" if key else lacking(device) if device else "")
    return f"note: trained without the fused kernels, slower and with more memory: {why}" if why else ""


def flops_per_token(shape: Shape, load: Load, adapter: int) -> float:
    """Floating point operations that training must do, for MFU.

    2 forward and 2 for the inputs' gradient a frozen weight, 6 a trained one, 4 the head's where a token
    counts, and causal attention. Recomputation isn't among them.
    """
    attention = 3.5 * 2 * shape.attention(load.longest)
    return 4 * shape.weights + 6 * adapter + 4 * shape.vocabulary * shape.hidden * load.share + attention


def _optimizer_bytes(optim: str) -> float:
    """Bytes that it keeps for a parameter on the GPU; what is paged lies beside torch's memory."""
    if optim.startswith("paged"):
        return 0.0
    states = next((count for name, count in STATES.items() if optim.startswith(name)), 2)
    return states * (1.0 if optim.endswith("8bit") else 4.0)


def _adapter(shape: Shape, recipe: Recipe) -> int:
    return trainable(recipe.lora, shape.linears, shape.beside)


def _phases(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """As the first of a run's steps are trained, and the last."""
    return recipe, recipe.model_copy(update={"precision": "16-bit"})


def _parts(recipe: Recipe) -> tuple[float, float]:
    """Bytes of a linear layer's weight, and of its scales beside it."""
    packed = HALF if recipe.bnb is None else 0.5
    return packed, _weight_bytes(recipe) - packed


def _weight_bytes(recipe: Recipe) -> float:
    if recipe.gptq:
        return GPTQ
    if recipe.bnb is None:
        return HALF
    if recipe.bnb.load_in_8bit:
        return INT8
    return NF4_DOUBLE if recipe.bnb.bnb_4bit_use_double_quant else NF4
