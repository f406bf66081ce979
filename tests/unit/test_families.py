"""What a config.json alone decides: the text model of one with more parts, and what can't be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from core.families import FAMILIES, TEXT_TWINS, has_parts, refusal, text_config, text_name, whole_name

DENSE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.language_model.lm_head.weight", "lm_head.weight"),
        ("model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", None),
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj.weight", None),
        ("multi_modal_projector.mm_input_projection_weight", None),
        ("visual.blocks.0.attn.qkv.weight", None),
        ("model.visual.merger.norm.weight", None),
    ],
)
def test_a_text_models_tensors_are_found_by_the_names_of_all_layouts(stored: str, text: str | None) -> None:
    assert text_name(stored) == text


def test_an_adapters_names_are_those_that_peft_looks_for_in_the_whole_model() -> None:
    name = "model.layers.3.self_attn.q_proj.lora_A.weight"
    assert whole_name(name) == "model.language_model.layers.3.self_attn.q_proj.lora_A.weight"
    assert text_name(whole_name(name)) == name
    assert whole_name("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "mixture of experts"),
        ({"model_type": "gpt_oss", "num_local_experts": 32}, "mixture of experts"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "mixture of experts"),
        ({"model_type": "dbrx", "ffn_config": {"moe_num_experts": 16}}, "mixture of experts"),
        ({"model_type": "jamba", "num_experts": 16, "mamba_d_state": 16}, "mixture of experts"),
        ({"model_type": "hunyuan_v1_moe", "num_experts": [16, 16]}, "mixture of experts"),
        ({"model_type": "llama4", "text_config": {"num_local_experts": 16}}, "mixture of experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder with a decoder"),
        (
            {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
            | {"is_encoder_decoder": True},
            "encoder with a decoder",
        ),
        ({"model_type": "mamba"}, "carry a state along"),
        ({"model_type": "recurrent_gemma", "block_types": ["recurrent", "attention"]}, "carry a state along"),
        ({"model_type": "falcon_h1", "mamba_d_ssm": 1024}, "carry a state along"),
        ({"model_type": "qwen3_5", "text_config": {"layer_types": ["linear_attention"]}}, "linear_attention"),
        (
            {"model_type": "granitemoehybrid", "num_local_experts": 0, "mamba_d_state": 256}
            | {"layer_types": ["attention", "attention"]},
            "one without is untried",
        ),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "(conv)"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "no model that writes"),
        ({"model_type": "siglip"}, "no model of type 'siglip' that writes"),
        (
            {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"}},
            "can't be had without its other parts",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "novel"}},
            "(novel) can't be had without its other parts",
        ),
        (
            {"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]},
            "no model that writes",
        ),
        ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, "no model that writes"),
        ({"model_type": "novel", "auto_map": {}}, "code of its own, which is never run"),
        ({"model_type": "xlnet", "architectures": ["XLNetLMHeadModel"]}, "has no models of type 'xlnet'"),
        ({"model_type": "ctrl", "architectures": ["CTRLLMHeadModel"]}, "has no models of type 'ctrl'"),
        ({"model_type": "opt", "architectures": ["OPTForCausalLM"]}, "has no models of type 'opt'"),
        ({"model_type": "llava", "text_config": {"model_type": "opt"}}, "has no models of type 'opt'"),
        ({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}}, "several streams"),
    ],
)
def test_what_cant_be_done_is_refused_with_what_can(content: dict[str, Any], reason: str) -> None:
    said = refusal(content, "'some/model'")
    assert said is not None
    assert reason in said
    assert any(family.example in said for family in FAMILIES.values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_of_the_table_is_not_refused(kind: str) -> None:
    assert refusal(AutoConfig.for_model(kind).to_dict(), kind) is None


def test_the_families_are_in_the_manual() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "train.md").read_text()
    assert [
        f for f in FAMILIES.values() if f"| {f.title} | `{f.example}` | {f.special} |\n" not in page
    ] == []


def test_a_dense_model_with_a_count_of_experts_that_is_none_or_one_is_not_refused() -> None:
    assert refusal(DENSE | {"num_experts": None, "num_local_experts": 0}, "x") is None


@pytest.mark.parametrize("kind", ["gemma3", "gemma4", "gemma4_unified", "mistral3", "qwen2_5_vl", "qwen3_vl"])
def test_the_text_part_has_its_own_configuration(kind: str) -> None:
    whole = AutoConfig.for_model(kind)
    assert has_parts(whole.to_dict())
    assert refusal(whole.to_dict(), kind) is None
    text: Any = text_config(whole)
    assert text.model_type in FAMILIES
    assert text.part_of == kind
    assert text.hidden_size == whole.get_text_config().hidden_size
    assert "mrope_section" not in (text.rope_parameters or {})


def test_a_text_model_is_its_own_text_part() -> None:
    config = AutoConfig.for_model("gemma3_text")
    assert text_config(config) is config
    assert not has_parts(config.to_dict())


def test_twins_are_families_of_the_table() -> None:
    assert {twin for twin, _ in TEXT_TWINS.values()} <= FAMILIES.keys()
