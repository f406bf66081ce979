"""What a run will take, from the base's config alone: memory, tokens a second, minutes.

Counted: stored weights, adapter with gradients and optimizer, what the backward pass needs of each layer, the
head's chunk; and for the time matrix products, memory traffic around them, and the launching of kernels, of
which the GPU or the processor in front of it is the slower. The constants that arithmetic doesn't give were
fitted on one H200; `bench/results/train.json` has the forecast beside what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from train.loss import CHUNK
from train.model import Linears, linears, targets, trainable
from train.recipe import Recipe

GB = 1e9
# bytes of one weight: NF4 with a scale for each 64 weights (arXiv 2305.14314, section 3), int8, 16 bit
NF4, NF4_DOUBLE, INT8, HALF = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256), 1.0, 2.0
GPTQ = 0.5 + 2.5 / 128
OPTIMIZER = {
    "adamw_torch_fused": 8.0,
    "paged_adamw_8bit": 0.0,
    "paged_adamw_32bit": 0.0,
}  # paged: beside torch

AROUND_ADAPTERS = (
    38.0  # bytes moved by small kernels, a token and element of an adapted layer's in- and output
)
AROUND_HEADS = (
    290.0  # likewise around attention: rotation, copies and attention itself, an element of q and k
)
PER_LAYER = 2.3e-3  # seconds of a layer in a micro-batch that don't depend on its tokens: NF4, small kernels
LAUNCH = 1.3e-3  # seconds that the processor takes to launch one pass through a layer
LAUNCH_ADAPTER = 0.25e-3  # and one adapter in it; as much again for its dropout
PAGED = 2e-9  # seconds a parameter and step of a paged optimizer
ATTENTION_IN, MLP_IN = ("q_proj", "k_proj", "v_proj", "qkv_proj"), ("gate_proj", "up_proj", "gate_up_proj")
AGAIN = 1.25  # times what a layer keeps, while it is computed again and its gradients are made
RESERVE = 0.25 * GB  # workspaces, the context's own buffers


@dataclass(frozen=True)
class Gpu:
    """`flops`: bf16 matrix products a second as measured, not as advertised; `bandwidth`: bytes a second."""

    flops: float
    bandwidth: float
    peak: float  # advertised, which MFU is a share of


# By a part of torch.cuda.get_device_name. The first two measured with 8192-wide matrices, the others half of
# what is advertised, rounded.
GPUS = {
    "H200": Gpu(750e12, 4.2e12, 989e12),
    "H100": Gpu(750e12, 3.0e12, 989e12),
    "A100": Gpu(250e12, 1.5e12, 312e12),
    "L40S": Gpu(200e12, 0.7e12, 362e12),
    "4090": Gpu(150e12, 0.9e12, 165e12),
    "3090": Gpu(65e12, 0.8e12, 71e12),
    "A10": Gpu(70e12, 0.5e12, 125e12),
    "L4": Gpu(60e12, 0.25e12, 121e12),
    "T4": Gpu(30e12, 0.25e12, 65e12),
}


@dataclass(frozen=True)
class Shape:
    """What of a model's config counts."""

    layers: int
    hidden: int
    intermediate: int
    query: int  # heads times their width
    key: int
    vocabulary: int
    linears: list[Linears]
    other: int  # parameters that aren't in those layers, shared ones once

    @property
    def weights(self) -> int:
        """Logical weights of the linear layers without the head."""
        return sum(layer.elements for layer in self.linears)

    @property
    def parameters(self) -> int:
        return self.weights + self.other


def shape_of(config: PreTrainedConfig) -> Shape:
    """Build the model without its weights and count."""
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM  # untyped
        model = auto.from_config(config)
    there = linears(model)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        query=config.num_attention_heads * head,
        key=(getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head,
        vocabulary=config.vocab_size,
        linears=there,
        other=parameters - sum(layer.elements for layer in there),
    )


@dataclass(frozen=True)
class Load:
    """What the data puts into one micro-batch, on average; and into the largest one."""

    tokens: float
    trained: float  # tokens that count in the loss
    most_tokens: float
    most_trained: float
    longest: float  # mean length of a row, weighted by tokens

    @property
    def share(self) -> float:
        return self.trained / max(1.0, self.tokens)


@dataclass(frozen=True)
class Plan:
    """The forecast for one micro-batch."""

    trainable: int
    memory_gb: float
    tokens_per_s: float
    flops_per_token: float


def forecast(shape: Shape, recipe: Recipe, load: Load, gpu: Gpu) -> Plan:
    """Forecast memory at its peak and the speed of steps."""
    names, _ = targets(recipe.lora.target_modules, shape.linears)
    adapter = trainable(recipe.lora, shape.linears, names)
    seconds = _seconds(shape, recipe, load, gpu, adapter)
    return Plan(
        trainable=adapter,
        memory_gb=_memory(shape, recipe, load, adapter) / GB,
        tokens_per_s=load.tokens / seconds,
        flops_per_token=flops_per_token(shape, load, adapter),
    )


def flops_per_token(shape: Shape, load: Load, adapter: int) -> float:
    """Floating point operations that training must do, for MFU.

    2 forward and 2 for the inputs' gradient a frozen weight, 6 a trained one, 4 the head's where a token
    counts, and causal attention. Recomputation isn't among them.
    """
    attention = 3.5 * 2 * load.longest * shape.query * shape.layers
    return 4 * shape.weights + 6 * adapter + 4 * shape.vocabulary * shape.hidden * load.share + attention


def saved_per_token(shape: Shape, names: Sequence[str]) -> float:
    """Bytes of one layer that the backward pass needs, with adapters on the layers `names`.

    Two norms (fp32), queries, keys and values before and after rotation, attention's output, the gate, its
    activation and the other half; and the inputs of the adapters.
    """
    inputs = shape.hidden * (any(name in ATTENTION_IN for name in names))
    inputs += shape.hidden * (any(name in MLP_IN for name in names))
    inputs += shape.intermediate * ("down_proj" in names)
    attention = 4 * shape.query + 6 * shape.key + 2 * shape.query
    return 8 * shape.hidden + attention + 6 * shape.intermediate + 2 * inputs


def products_per_token(shape: Shape) -> float:
    """Bytes of the matrix products' and the attention's results of one layer, and of its input."""
    return 2 * (2 * shape.query + 2 * shape.key + 3 * shape.hidden + 2 * shape.intermediate)


def _memory(shape: Shape, recipe: Recipe, load: Load, adapter: int) -> float:
    """Bytes at the peak: at the end of the forward pass, or where a layer is computed again."""
    names, _ = targets(recipe.lora.target_modules, shape.linears)
    weights = shape.weights * _weight_bytes(recipe) + shape.other * 2
    training = adapter * (4 + 4 + OPTIMIZER[recipe.sft.optim] + 2)  # the last for autocast's copies
    layer = (saved_per_token(shape, names) + _dropout_per_token(shape, recipe, names)) * load.most_tokens
    chunk = (
        14 if load.most_trained > CHUNK else 9
    )  # bytes a logit; more where the chunk before is still there
    head = min(CHUNK, load.most_trained) * shape.vocabulary * chunk + 4 * shape.hidden * load.most_trained
    kept = {
        "none": 1.035 * layer * shape.layers + head,
        "selective": products_per_token(shape) * load.most_tokens * shape.layers + head,
        "full": 2 * shape.hidden * load.most_tokens * shape.layers + max(head, AGAIN * layer),
    }[recipe.sft.gradient_checkpointing]
    return weights + training + kept + RESERVE


def _dropout_per_token(shape: Shape, recipe: Recipe, names: Sequence[str]) -> float:
    """Bytes of one layer that dropout keeps: a mask of each adapted layer's input."""
    if not recipe.lora.lora_dropout:
        return 0.0
    inputs = sum(layer.in_features * layer.count for layer in shape.linears if layer.name in names)
    return inputs / shape.layers


def _weight_bytes(recipe: Recipe) -> float:
    if recipe.gptq:
        return GPTQ
    if recipe.bnb is None:
        return HALF
    if recipe.bnb.load_in_8bit:
        return INT8
    return NF4_DOUBLE if recipe.bnb.bnb_4bit_use_double_quant else NF4


def _seconds(shape: Shape, recipe: Recipe, load: Load, gpu: Gpu, adapter: int) -> float:
    """Seconds of one micro-batch."""
    again = recipe.sft.gradient_checkpointing != "none"
    passes = 3 if again else 2
    names, _ = targets(recipe.lora.target_modules, shape.linears)
    products = flops_per_token(shape, load, adapter) + (2 * shape.weights if again else 0)
    adapted = (layer for layer in shape.linears if layer.name in names)
    around = sum((layer.in_features + layer.out_features) * layer.count for layer in adapted)
    heads = (shape.query + shape.key) * shape.layers
    traffic = (AROUND_ADAPTERS * around + AROUND_HEADS * heads) * passes / 2
    busy = load.tokens * (products / gpu.flops + traffic / gpu.bandwidth) + PER_LAYER * shape.layers
    adapters = len(names) * (2 if recipe.lora.lora_dropout else 1)
    launches = (LAUNCH + LAUNCH_ADAPTER * adapters) * shape.layers * passes
    paged = PAGED * adapter if recipe.sft.optim.startswith("paged") else 0.0
    return max(busy, launches) + paged / recipe.sft.gradient_accumulation_steps


def gpu_of(name: str) -> Gpu | None:
    """The figures of a GPU by its name; None if it is none that we know."""
    return next((gpu for part, gpu in GPUS.items() if re.search(rf"\b{part}(?!\d)", name)), None)
