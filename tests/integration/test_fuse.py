"""`fuse(model)` as something to put into any model: adapters, what isn't packed, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.integration.fused_models import BATCH, CONFIGS, NF4, adapted, recipe_of
from train.fused.fuse import fuse, fused, unfuse


def hidden_of(model: Any, **others: Any) -> torch.Tensor:
    """What the decoder of a model, ours or PEFT's, makes of the packed rows."""
    found: torch.Tensor = model.get_decoder()(
        input_ids=BATCH.input_ids,
        position_ids=BATCH.position_ids,
        cu_seq_lens_q=BATCH.cu_seq_lens,
        max_length_q=BATCH.max_length,
        **others,
    ).last_hidden_state
    return found


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "lean"])
def test_a_fused_model_obeys_its_adapters(tmp_path: Path, fast: bool) -> None:
    """Of another rank, on other layers, two at once, and disabled: what PEFT's own layers would do."""
    model = adapted(tmp_path, "qwen3", recipe_of(NF4)).peft
    model.add_adapter("other", LoraConfig(r=7, lora_alpha=3, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B.other" in name:
            parameter.data.normal_(std=0.2)

    def results() -> list[torch.Tensor]:
        model.set_adapter("default")
        found = [hidden_of(model)]
        with model.disable_adapter():
            found.append(hidden_of(model))
        model.set_adapter("other")
        found.append(hidden_of(model))
        model.base_model.set_adapter(["default", "other"])
        return [*found, hidden_of(model)]

    with torch.no_grad():
        wanted = results()
        fuse(model, torch.float32, fast)
        assert fused(model)
        made = results()
        unfuse(model)
        assert not fused(model)
        assert torch.equal(results()[0], wanted[0])
    for hidden, reference in zip(made, wanted, strict=True):
        torch.testing.assert_close(hidden, reference, rtol=1e-4, atol=1e-4)
    assert not any(torch.allclose(wanted[0], other, rtol=1e-2) for other in wanted[1:])


def test_what_is_not_packed_goes_the_models_own_way(tmp_path: Path) -> None:
    model = adapted(tmp_path, "llama", recipe_of()).peft
    ids, own = BATCH.input_ids[:, :20], model.get_decoder().forward
    with torch.no_grad():
        wanted = [model(ids).logits, model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)]
        fuse(model, torch.float32)
        made = [model(ids).logits, model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)]
        assert all(map(torch.equal, made, wanted))
        model.merge_adapter()
        merged = hidden_of(model)
        unfuse(model)
        assert torch.equal(hidden_of(model), merged)
    assert model.get_decoder().forward == own


def test_a_model_that_is_not_known_is_refused_with_its_reason() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"](hidden_act="relu"))
    with pytest.raises(ValueError, match="its activation is neither SiLU nor GELU"):
        fuse(model)


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        (LoraConfig(use_dora=True), "is more than LoRA's two matrices"),
        (LoraConfig(lora_bias=True), "is more than LoRA's two matrices"),
        (LoraConfig(lora_dropout=0.1), "has dropout"),
        (LoraConfig(modules_to_save=["embed_tokens"]), "embed_tokens.* is trained too"),
        (LoraConfig(target_modules=["q_proj", "embed_tokens"]), "embed_tokens.* is trained too"),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "is no LoRA"),
    ],
    ids=["DoRA", "biases", "dropout", "whole modules", "embeddings", "IA3"],
)
def test_other_adapters_are_refused_with_their_reason(adapter: Any, why: str) -> None:
    adapter.target_modules = adapter.target_modules or ["q_proj"]
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"](attention_bias=True))
    with pytest.raises(ValueError, match=why):
        fuse(get_peft_model(model, adapter))
