"""Small random models with adapters, and their losses and gradients with the decoder by hand and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from train.batches import Batch, collate
from train.examples import Encoded
from train.fused.decoder import Stack
from train.fused.fuse import fused
from train.loss import head_loss
from train.model import Adapted, load_base
from train.recipe import Recipe, parse

CPU = torch.device("cpu")
LENGTHS = (40, 17, 60)  # of the rows; both windows are shorter than the longest
# Multiples of 64, as bitsandbytes 0.50 decodes other widths wrongly on a CPU.
WIDTHS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "phi3": partial(Phi3Config, **WIDTHS, num_key_value_heads=4, sliding_window=20),
    "llama": partial(LlamaConfig, **WIDTHS, num_key_value_heads=2),
    "mistral": partial(MistralConfig, **WIDTHS, num_key_value_heads=1, sliding_window=16),
    "gemma": partial(GemmaConfig, **WIDTHS, num_key_value_heads=1, head_dim=32),
    # Scores of these random weights reach 30: a cap of 5 is felt, and so is the head's.
    "gemma2": partial(
        Gemma2Config,
        **WIDTHS,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=20,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": partial(
        Gemma3TextConfig,
        **WIDTHS,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=20,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2": partial(Qwen2Config, **WIDTHS, num_key_value_heads=2),
    "qwen3": partial(Qwen3Config, **WIDTHS, num_key_value_heads=1, head_dim=32),
    "phi4": partial(Phi3Config, **WIDTHS, num_key_value_heads=2, partial_rotary_factor=0.75),
    "smollm3": partial(SmolLM3Config, **WIDTHS, num_key_value_heads=2, no_rope_layers=[1, 0, 1]),
}
FAMILIES = tuple(CONFIGS)
NF4 = {"load_in_4bit": True}
Gradients = dict[str, torch.Tensor]


def recipe_of(bnb: dict[str, Any] | None = None, /, sft: dict[str, Any] | None = None, **lora: Any) -> Recipe:
    content: dict[str, Any] = {
        "model": {"base_model": "random", "license": "none"},
        "data": {"path": "none"},
        "LoraConfig": {"r": 4, "lora_alpha": 12} | lora,
        "SFTConfig": {"gradient_checkpointing": "none"} | (sft or {}),
    }
    return parse(content | ({"BitsAndBytesConfig": bnb} if bnb else {}), "test")


def adapted(folder: Path, family: str, recipe: Recipe, **config: Any) -> Adapted:
    """A random model of `family`, none of whose norms and adapters does nothing; the same each time."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**config), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder / family)
    made = Adapted(load_base(str(folder / family), recipe, CPU), recipe, CPU)
    assert not fused(made.base)  # on a CPU: what follows compares with transformers and PEFT
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return made


def rows(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Encoded]:
    """Rows of random ids; the second half of each is trained."""
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 300, (length,), generator=draw).tolist() for length in lengths]
    return [Encoded(row, [0] * (len(row) // 2) + [1] * (len(row) - len(row) // 2), []) for row in ids]


BATCH = collate(rows())


def stack_of(model: Adapted, fast: bool = True, fp8: bool = False) -> Stack:
    return Stack(model.base, torch.float32, CPU, fast, fp8)


def loss_of(model: Adapted, stack: Stack | None, batch: Batch = BATCH) -> torch.Tensor:
    """By the stack, or by transformers and PEFT without one."""
    if stack is None:
        return model(batch)
    softcap = getattr(model.base.config, "final_logit_softcapping", None) or 0.0
    return head_loss(stack(batch), model.base.get_output_embeddings().weight, batch, softcap)


def gradients(model: Adapted, stack: Stack | None, *batches: Batch) -> tuple[list[float], Gradients]:
    """Each batch's loss, and the gradients of all adapters, summed up over the batches."""
    model.train()
    model.zero_grad()
    losses = []
    for batch in batches or (BATCH,):
        loss = loss_of(model, stack, batch)
        loss.backward()
        losses.append(loss.item())
    found = {name: part.grad for name, part in model.named_parameters() if part.requires_grad}
    assert found
    return losses, {name: grad.clone() for name, grad in found.items() if grad is not None}


def assert_same(made: tuple[list[float], Gradients], wanted: tuple[list[float], Gradients]) -> None:
    assert made[0] == pytest.approx(wanted[0], rel=1e-5)
    assert made[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert gradient.norm() > 0, name
        assert (made[1][name] - gradient).norm() < 1e-4 * gradient.norm(), name
