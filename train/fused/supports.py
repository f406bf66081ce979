"""Which models and recipes `Stack` can do; all others train by transformers and PEFT."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch

from core.families import FAMILIES
from train.fused.decoder import is_gelu
from train.fused.fp8 import product
from train.fused.fp8_reference import FP8
from train.gptq import GptqLinear
from train.layers import Linears
from train.recipe import Recipe

ROTATIONS = ("default", "linear", "llama3", "longrope", "yarn")  # the others' angles depend on the batch
AMPERE = (8, 0)  # the first with bf16 and FlashAttention
WIDEST = 256  # heads that FlashAttention does, in steps of 8
DROPOUTS = ("attention_dropout", "embd_pdrop", "resid_pdrop")


def obstacle(model: Any) -> str:
    """Why `Stack` can't compute what this causal language model would; empty if it can."""
    config = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        return f"a {config.model_type} is none of the families with kernels of their own"
    if not family.fused:
        return f"a {family.title} has what those kernels lack ({family.special})"
    layer = model.get_decoder().layers[0]
    turns = _rope_types(config)
    linears: list[Any] = [part for part in layer.modules() if isinstance(part, torch.nn.Linear)]
    width = layer.self_attn.head_dim
    reasons = {
        "its weights are stored in a form that those kernels don't read": not all(map(_is_readable, linears)),
        "it looks at later tokens too": not layer.self_attn.is_causal,
        f"its RoPE is of type {', '.join(sorted(turns))}": not turns <= set(ROTATIONS),
        f"its heads are {width} wide": width > WIDEST or width % 8 != 0,
        "its config asks for dropout": any(getattr(config, name, None) for name in DROPOUTS),
        "its activation is neither SiLU nor GELU": not _has_known_activation(layer.mlp),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _rope_types(config: Any) -> set[str]:
    """Of all layers; Gemma 3 has a RoPE for each kind of them."""
    rope = getattr(config, "rope_parameters", None) or {}
    of_kinds = [part for part in rope.values() if isinstance(part, dict)]
    return {str(part.get("rope_type", "default")) for part in of_kinds or [rope]}


def adapters_obstacle(model: Any) -> str:
    """Why `Stack` can't compute what PEFT's layers in the model's decoder would; empty if it can."""
    for name, module in model.get_decoder().named_modules():
        if hasattr(module, "base_layer") and not hasattr(module, "lora_A"):
            return f"the adapter of {name} is no LoRA"
        for adapter in getattr(module, "lora_A", ()):
            if adapter in module.lora_variant or module.lora_bias[adapter]:
                return f"the adapter {adapter!r} of {name} is more than LoRA's two matrices"
            if getattr(module.lora_dropout[adapter], "p", 0):
                return f"the adapter {adapter!r} of {name} has dropout"
    for name, parameter in model.get_decoder().named_parameters():
        if parameter.requires_grad and ".lora_A." not in name and ".lora_B." not in name:
            return f"{name} is trained too"
    return ""


def fits(model: Any) -> bool:
    """Whether `Stack` computes what this causal language model would."""
    return not obstacle(model)


def setting(recipe: Recipe) -> str:
    """The recipe's key that `Stack` can't do; empty if it does all that the recipe asks for."""
    lora, eight_bits = recipe.lora, recipe.bnb is not None and recipe.bnb.load_in_8bit
    of_base = recipe.bnb.passed() if recipe.bnb else {}
    keys = {
        "fully_shard": recipe.fully_shard,
        "BitsAndBytesConfig.load_in_8bit": eight_bits,
        "DPOConfig": recipe.dpo is not None,
        "SFTConfig.fp16": recipe.sft.fp16,
        "LoraConfig.lora_dropout": lora.lora_dropout,
        "LoraConfig.use_dora": lora.use_dora,
        # Weights that those kernels don't read, or layers that aren't alike
        "BitsAndBytesConfig.bnb_4bit_quant_storage": of_base.get("bnb_4bit_quant_storage")
        not in (None, "uint8"),
        "BitsAndBytesConfig.llm_int8_skip_modules": of_base.get("llm_int8_skip_modules"),
        "LoraConfig.modules_to_save": lora.modules_to_save,
        "LoraConfig.rank_pattern": lora.rank_pattern,
        "LoraConfig.exclude_modules": lora.exclude_modules,
        "LoraConfig.layers_to_transform": lora.layers_to_transform is not None,
        "LoraConfig.target_modules, by layer,": _by_layer(lora.target_modules),
    }
    return next((key for key, wanted in keys.items() if wanted), "")


def _by_layer(wanted: list[str] | str) -> bool:
    """Whether target modules may be other ones from layer to layer: paths, or an expression."""
    return wanted != "all-linear" if isinstance(wanted, str) else any("." in name for name in wanted)


def allows(recipe: Recipe) -> bool:
    """Whether `Stack` does what the recipe asks for."""
    return not setting(recipe)


def lacking(device: torch.device) -> str:
    """Why the kernels don't run on this device; empty if they do."""
    if device.type != "cuda":
        return "there is no CUDA GPU"
    if torch.cuda.get_device_capability(device) < AMPERE:
        return "the GPU is older than Ampere"
    return "" if find_spec("triton") else "Triton isn't installed"


def fp8_obstacle(recipe: Recipe, of_model: str, there: Iterable[Linears], device: torch.device) -> str:
    """Why a recipe can't have the FP8 that it asks for; `of_model` is `obstacle`'s. Empty if it can.

    `there` are the model's linear layers.
    """
    if recipe.precision != "fp8":
        return ""
    key = setting(recipe)
    why = of_model or (f"{key} is set" if key else _odd(there) or lacking(device) or _without_fp8(device))
    cure = "leave precision out (--set precision=16-bit)"
    return f"precision: fp8 is for the fused kernels on a GPU with FP8, and here {why}; {cure}" if why else ""


def _odd(there: Iterable[Linears]) -> str:
    """Names a layer that PyTorch's FP8 product refuses: it wants rows of whole 16 bytes."""
    for layer in there:
        if layer.out_features % 16 or layer.in_features % 16:
            sides = f"{layer.out_features:,} by {layer.in_features:,}"
            return f"{layer.name} is {sides}, and both sides have to be multiples of 16"
    return ""


def _without_fp8(device: torch.device) -> str:
    """Asks PyTorch for the product that `fused.fp8` makes."""
    rows, scales = torch.zeros(16, 16, device=device).to(FP8), torch.ones(16, 1, device=device)
    try:
        product(rows, rows, scales, scales.T, None, torch.bfloat16)
    except (RuntimeError, ValueError, NotImplementedError):
        name = torch.cuda.get_device_name(device)
        return f"PyTorch {torch.__version__} has no FP8 products with a scale a row on {name}"
    return ""


def has_kernels(device: torch.device) -> bool:
    """Whether the kernels run on this device."""
    return not lacking(device)


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
