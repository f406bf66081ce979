"""Which models and recipes `Stack` can do; all others train by transformers and PEFT."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from core.families import FAMILIES
from train.fused.stack import is_gelu
from train.gptq import GptqLinear
from train.recipe import Recipe

ROTATIONS = ("default", "linear", "llama3", "longrope", "yarn")  # the others' angles depend on the batch
AMPERE = (8, 0)  # the first with bf16 and FlashAttention
WIDEST = 256  # heads that FlashAttention does, in steps of 8
DROPOUTS = ("attention_dropout", "embd_pdrop", "resid_pdrop")


def fits(model: Any) -> bool:
    """Whether `Stack` computes what this causal language model would."""
    config = model.config
    family = FAMILIES.get(config.model_type)
    if family is None or not family.fused:
        return False
    layer = model.get_decoder().layers[0]
    rope = getattr(config, "rope_parameters", None) or {}
    linears: list[Any] = [part for part in layer.modules() if isinstance(part, torch.nn.Linear)]
    return (
        all(linear.bias is None and _is_readable(linear) for linear in linears)
        and layer.self_attn.is_causal
        and rope.get("rope_type", "default") in ROTATIONS
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and layer.self_attn.head_dim <= WIDEST
        and layer.self_attn.head_dim % 8 == 0
        and not any(getattr(config, name, None) for name in DROPOUTS)
        and _has_known_activation(layer.mlp)
    )


def allows(recipe: Recipe) -> bool:
    """Whether `Stack` does what the recipe asks for."""
    lora, eight_bits = recipe.lora, recipe.bnb is not None and recipe.bnb.load_in_8bit
    return not (eight_bits or recipe.sft.fp16 or lora.lora_dropout or lora.use_dora)


def has_kernels(device: torch.device) -> bool:
    """Whether the kernels run on this device."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= AMPERE
        and find_spec("triton") is not None
    )


def _is_readable(linear: Any) -> bool:
    """Whether the matrix is one of at least 16 bits, or one that `Frozen` can decode."""
    weight = linear._parameters.get("weight")
    if weight is None:
        return hasattr(linear, "base_layer") or isinstance(linear, GptqLinear)
    return hasattr(weight, "quant_state") or (weight.is_floating_point() and weight.element_size() >= 2)


def _has_known_activation(mlp: Any) -> bool:
    try:
        is_gelu(mlp)
    except ValueError:
        return False
    return True
