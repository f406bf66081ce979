"""What counts for memory and time: of a model's config, of the data, and of GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from train.attention import heads_of
from train.fused.layer import window_of
from train.fused.supports import obstacle
from train.layers import Linears, linears, others

# The layers that a decoder layer's two norms feed, by the names of all families.
ATTENTION_IN, MLP_IN = ("q_proj", "k_proj", "v_proj", "qkv_proj"), ("gate_proj", "up_proj", "gate_up_proj")


@dataclass(frozen=True)
class Shape:
    """What of a model's config counts."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    query: int  # heads times their width
    key: int
    vocabulary: int
    linears: list[Linears]
    beside: dict[str, int]  # parameters of the other modules, by name
    other: int  # parameters that aren't in those layers, shared ones once
    obstacle: str  # why train/fused can't do its layers' passes; empty if it can
    windows: tuple[int | None, ...]  # of each layer's attention; None where it sees all
    norms_after: bool  # of attention and MLP, beside those before them
    softcap: bool  # of the logits

    @property
    def by_hand(self) -> bool:
        """Whether train/fused has its layers' passes by hand."""
        return not self.obstacle

    def attention(self, length: float) -> float:
        """The sum over layers of the keys that are seen, times two, times `query`; rows have this length."""
        seen = (length if w is None or length <= w else 2 * w - w * w / length for w in self.windows)
        return self.query * sum(seen)

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
    heads = heads_of(config)
    layers = model.get_decoder().layers
    parameters = sum(parameter.numel() for parameter in model.parameters())
    widths = config.intermediate_size  # of each layer, in a Gemma 3n
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=max(widths) if isinstance(widths, list) else widths,
        heads=config.num_attention_heads,
        query=config.num_attention_heads * sum(width for _, width in heads) // len(heads),
        key=sum(count * width for count, width in heads) // len(heads),
        vocabulary=config.vocab_size,
        linears=there,
        beside=others(model),
        other=parameters - sum(layer.elements for layer in there),
        obstacle=obstacle(model),
        windows=tuple(window_of(getattr(layer, "self_attn", None), config) for layer in layers),
        norms_after=hasattr(layers[0], "pre_feedforward_layernorm"),
        softcap=bool(getattr(config, "final_logit_softcapping", None)),
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
class Gpu:
    """`flops`: bf16 matrix products a second as measured, not as advertised; `bandwidth`: bytes a second.

    `link`: bytes a second to another card, as advertised: PCIe 4's, or NVLink's one way.
    """

    flops: float
    bandwidth: float
    peak: float  # advertised, which MFU is a share of
    memory: float  # bytes
    ampere: bool = True  # or newer: bf16 and FlashAttention
    link: float = 32e9


# By a part of torch.cuda.get_device_name. The first two measured with 8192-wide matrices, the others half of
# what is advertised, rounded.
GPUS = {
    "H200": Gpu(750e12, 4.2e12, 989e12, 141e9, link=450e9),
    "H100": Gpu(750e12, 3.0e12, 989e12, 80e9, link=450e9),
    "A100": Gpu(250e12, 1.5e12, 312e12, 80e9, link=300e9),
    "L40S": Gpu(200e12, 0.7e12, 362e12, 48e9),
    "4090": Gpu(150e12, 0.9e12, 165e12, 24e9),
    "3090": Gpu(65e12, 0.8e12, 71e12, 24e9),
    "A10": Gpu(70e12, 0.5e12, 125e12, 24e9),
    "L4": Gpu(60e12, 0.25e12, 121e12, 24e9),
    "T4": Gpu(30e12, 0.25e12, 65e12, 16e9, ampere=False),
}


def gpu_of(name: str) -> Gpu | None:
    """The figures of a GPU by its name; None if it is none that we know."""
    return next((gpu for part, gpu in GPUS.items() if re.search(rf"\b{part}(?!\d)", name)), None)
