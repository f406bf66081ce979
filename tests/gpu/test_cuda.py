"""Training on CUDA: packed rows don't see each other, gradients are right, a quantised base learns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
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

from bench.train_documents import documents
from bench.train_models import random_base
from train.attention import VARLEN
from train.batches import IGNORED, Batch, Order, collate
from train.examples import Encoded
from train.fused.fuse import fused, unfuse
from train.model import Adapted
from train.recipe import Recipe, parse
from train.sft import SFTTrainer

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU, and there is none", allow_module_level=True)
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA is used: `exactly` wants it


CUDA = torch.device("cuda")
WIDTHS: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
FIRST = ("phi3", "llama", "mistral", "gemma")
CONFIGS: dict[str, PreTrainedConfig] = {
    "phi3": Phi3Config(**WIDTHS, num_key_value_heads=4),
    "llama": LlamaConfig(**WIDTHS, num_key_value_heads=4),
    "mistral": MistralConfig(**WIDTHS, num_key_value_heads=1, sliding_window=64),
    "gemma": GemmaConfig(**WIDTHS, num_key_value_heads=1, head_dim=256),
    "gemma2": Gemma2Config(
        **WIDTHS, num_key_value_heads=2, head_dim=64, query_pre_attn_scalar=64, sliding_window=64
    ),
    "gemma3": Gemma3TextConfig(
        **WIDTHS,
        num_key_value_heads=2,
        head_dim=256,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "qwen2": Qwen2Config(**WIDTHS, num_key_value_heads=2),
    "qwen3": Qwen3Config(**WIDTHS, num_key_value_heads=2, head_dim=128),
    "phi4": Phi3Config(**WIDTHS, num_key_value_heads=2, partial_rotary_factor=0.75),
    "smollm3": SmolLM3Config(**WIDTHS, num_key_value_heads=2, no_rope_layers=[1, 0]),
}


def recipe(memory: str = "fast", **sft: Any) -> Recipe:
    """A recipe for a small random base."""
    content: dict[str, Any] = {
        "model": {"base_model": "random", "license": "none"},
        "data": {"path": "none"},
        "BitsAndBytesConfig": {"load_in_4bit": True},
        "SFTConfig": {"max_length": 512, "per_device_train_batch_size": 2},
        "memory": memory,
    }
    content["SFTConfig"] |= sft
    return parse(content, "test")


def with_random_b(adapted: Adapted) -> Adapted:
    """A fresh adapter's B is zero, and then A has no gradient."""
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return adapted


def keep_labels_of(batch: Batch, row: int) -> Batch:
    """The batch with the labels of one row only."""
    start, end = batch.cu_seq_lens[row : row + 2].tolist()
    labels = torch.full_like(batch.labels, IGNORED)
    labels[:, start:end] = batch.labels[:, start:end]
    return replace(batch, labels=labels, trained=int((labels != IGNORED).sum()))


@pytest.mark.parametrize("family", CONFIGS)
def test_no_document_sees_another(family: str) -> None:
    adapted = with_random_b(Adapted(random_base(recipe(), CUDA, CONFIGS[family]), recipe(), CUDA)).eval()
    rows = documents(300, 1000, 4)
    one = collate(rows)
    changed = collate([*rows[:1], Encoded(rows[1].ids[::-1], rows[1].mask, []), *rows[2:]])
    with torch.no_grad():
        for row in (0, 2, 3):
            before = adapted(keep_labels_of(one, row).to(CUDA))
            after = adapted(keep_labels_of(changed, row).to(CUDA))
            assert torch.equal(before, after), f"row {row} changed with row 1"


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("by_hand", [True, False])
def test_gradients_are_those_of_an_fp32_reference(family: str, memory: str, by_hand: bool) -> None:
    """Packed, quantised, bf16, varlen attention; against row by row, fp32, the de-quantised weights."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    wanted = recipe(memory)
    adapted = with_random_b(Adapted(random_base(wanted, CUDA, CONFIGS[family]), wanted, CUDA)).train()
    assert fused(adapted.base)
    if not by_hand:
        unfuse(adapted.base)
    rows = documents(200, 1000, 3)
    batch = collate(rows).to(CUDA)
    (adapted(batch) / batch.trained).backward()
    found = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
    base = adapted.base
    unfuse(base)
    for module in list(base.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear4bit):  # PEFT's layer around it stays
                state = child.weight.quant_state
                dense = torch.nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                dense.weight = torch.nn.Parameter(dequantize_4bit(child.weight.data, state).float(), False)
                dense.bias = child.bias
                setattr(module, name, dense)
    for parameter in base.parameters():
        parameter.data = parameter.data.float()
    base.set_attn_implementation("eager")
    adapted.dtype = torch.float32
    adapted.zero_grad()
    for row in rows:
        (adapted(collate([row]).to(CUDA)) / batch.trained).backward()
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == set(found)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            error = (parameter.grad - found[name]).norm() / parameter.grad.norm()
            # What rounding to bf16 alone makes of the first four families' gradients is 0.9 % in the median
            # and 1.25 % at most; norms of heads, and after layers, make it more.
            near = 1.5e-2 if by_hand and family in FIRST else 2e-2
            near = 2.5e-2 if family == "gemma3" and not by_hand else near  # transformers rounds normed heads
            assert error < near, f"{name}: {error:.4f}"


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "paged_adamw_8bit", "paged_adamw_32bit"])
@pytest.mark.parametrize("fp16", [False, True])
def test_a_quantised_base_learns_and_goes_on(optim: str, fp16: bool, tmp_path: Path) -> None:
    wanted = recipe(max_steps=12, logging_steps=1, eval_steps=6, optim=optim, fp16=fp16, learning_rate=5e-3)
    lines: list[dict[str, Any]] = []

    def loop() -> SFTTrainer:
        adapted = Adapted(random_base(wanted, CUDA, CONFIGS["phi3"]), wanted, CUDA)
        order = Order(documents(300, 1000, 8), wanted.sft)
        return SFTTrainer(adapted, wanted, order, documents(300, 1000, 8), tmp_path, lines.append)

    loop().run()
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.2
    again = loop()
    again.resume()
    assert again.progress.step == 12


def test_the_attention_is_the_variable_length_one() -> None:
    base = random_base(recipe(), CUDA, CONFIGS["phi3"])
    assert base.config._attn_implementation == VARLEN
    capped = random_base(recipe(), CUDA, CONFIGS["gemma2"])
    assert capped.config._attn_implementation == "eager"


@pytest.fixture
def exactly() -> Iterator[None]:
    """Sums in the same order each time, and memory that isn't written is full of NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("family", CONFIGS)
def test_resident_matrices_are_those_of_nf4(family: str, exactly: None) -> None:
    """The numbers are the four-bit base's however it is stored: bit for bit bitsandbytes' own."""
    from bitsandbytes.functional import dequantize_4bit

    results = []
    for memory in ("fast", "lean"):
        wanted = recipe(memory)
        adapted = with_random_b(Adapted(random_base(wanted, CUDA, CONFIGS[family]), wanted, CUDA))
        forward = fused(adapted.base)
        assert forward is not None
        stack = forward.stack(CUDA)
        for number, layer in enumerate(stack.layers):
            for projection, matrix in zip(layer.projections, stack.frozen[number].all, strict=True):
                parts = [
                    dequantize_4bit(base.weight.data, base.weight.quant_state) for base in projection.bases
                ]
                assert torch.equal(projection.split(matrix)[0], torch.cat(parts))
        loss = adapted(collate(documents(300, 1000, 4)).to(CUDA))
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in adapted.parameters_to_train())])
    for fast, lean in zip(*results, strict=True):
        assert torch.equal(fast, lean)
