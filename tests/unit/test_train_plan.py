"""Forecasts from configs alone: adapters counted exactly, memory and speed in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GraniteConfig, LlamaConfig, Phi3Config, Qwen2Config, Starcoder2Config

from bench.train_models import CONFIGS as SHAPES
from train.forecast import HALF, INT8, NF4, NF4_DOUBLE, by_hand, flops_per_token, forecast, settle, unfused
from train.fused.graphs import TOKENS
from train.layers import linears, lora_config, others, targets, trainable
from train.recipe import RECIPES, Recipe, load_recipe
from train.sections import Lora
from train.shape import GPUS, Load, Shape, gpu_of, shape_of

CONFIGS = {
    "phi-3.5": SHAPES["microsoft/Phi-3.5-mini-instruct"],
    "gemma-7b": SHAPES["google/gemma-7b-it"],
    "gemma-2b": SHAPES["google/gemma-2b-it"],
    "mistral-7b": SHAPES["mistralai/Mistral-7B-Instruct-v0.3"],
    "llama-2-7b": SHAPES["TheBloke/Llama-2-7b-Chat-GPTQ"],
    "qwen3-4b": SHAPES["Qwen/Qwen3-4B"],
    "gemma-3-4b": SHAPES["google/gemma-3-4b-it"],
}
PARAMETERS = {
    "phi-3.5": 3_821_079_552,
    "gemma-7b": 8_537_680_896,
    "gemma-2b": 2_506_172_416,
    "mistral-7b": 7_248_023_552,
    "llama-2-7b": 6_738_415_616,
    "qwen3-4b": 4_022_468_096,
    "gemma-3-4b": 3_880_263_168,  # of its text part
}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}  # as Phi-4-mini's
SPLIT_NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FULL = Load(tokens=8192, trained=4096, most_tokens=8192, most_trained=4096, longest=600)


@pytest.fixture(scope="module")
def shapes() -> dict[str, Shape]:
    return {name: shape_of(config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def phi(shapes: dict[str, Shape]) -> Shape:
    return shapes["phi-3.5"]


def recipe_of(**sections: Any) -> Recipe:
    content = {"model": {"base_model": "x", "license": "mit"}, "data": {"path": "x"}}
    return Recipe.model_validate(content | {"BitsAndBytesConfig": {"load_in_4bit": True}} | sections)


def adapter(shape: Shape, **lora: Any) -> int:
    return trainable(Lora(**lora), shape.linears)


@pytest.mark.parametrize("name", CONFIGS)
def test_logical_parameters_are_the_models_own(name: str, shapes: dict[str, Shape]) -> None:
    assert shapes[name].parameters == PARAMETERS[name]


@pytest.mark.parametrize(("r", "count"), [(8, 12_582_912), (16, 25_165_824), (64, 100_663_296)])
def test_phis_adapter_reaches_its_fused_layers(r: int, count: int, phi: Shape) -> None:
    assert adapter(phi, r=r) == count
    fused = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert adapter(phi, r=r, target_modules=fused) == count


def test_the_seeds_names_reach_half_of_phis_kinds(phi: Shape) -> None:
    assert adapter(phi, r=64, target_modules=SPLIT_NAMES) == 35_651_584
    found, unmatched = targets(SPLIT_NAMES, phi.linears)
    assert found == ["down_proj", "o_proj"]
    assert unmatched == ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]


@pytest.mark.parametrize(
    ("name", "lora", "count"),
    [
        ("gemma-7b", {"r": 64}, 200_015_872),  # as the seed's notebook printed it
        ("llama-2-7b", {"r": 8, "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"]}, 8_388_608),
        ("mistral-7b", {"r": 16}, 41_943_040),
    ],
)
def test_adapters_of_the_other_seeds(
    name: str, lora: dict[str, Any], count: int, shapes: dict[str, Shape]
) -> None:
    assert adapter(shapes[name], **lora) == count


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 8}, "use_dora": True},
        {"target_modules": ["q_proj", "mlp.up_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*\.0\..*(q|v)_proj"},
        {"exclude_modules": ["k_proj"], "modules_to_save": ["norm", "embed_tokens"]},
    ],
)
def test_what_is_counted_is_what_peft_makes(settings: dict[str, Any]) -> None:
    import peft
    from transformers import LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    model = LlamaForCausalLM(config)
    lora = Lora(**{"r": 4} | settings)
    there, beside = linears(model), others(model)
    made = peft.get_peft_model(model, lora_config(lora, there))
    assert made.get_nb_trainable_parameters()[0] == trainable(lora, there, beside)


def test_bytes_of_a_weight() -> None:
    """The QLoRA paper, section 3: a scale of 32 bits for 64 weights, or of 8 bits with another for 256."""
    bits = [8 * NF4, 8 * NF4_DOUBLE]
    assert bits == pytest.approx([4.5, 4.127], abs=1e-3)


@pytest.mark.parametrize(
    ("section", "size"),
    [
        ({"load_in_4bit": True}, NF4_DOUBLE),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": False}, NF4),
        ({"load_in_8bit": True}, INT8),
        (None, HALF),
    ],
)
def test_the_weights_make_the_difference_between_quantisations(
    section: dict[str, Any] | None, size: float, phi: Shape
) -> None:
    gpu = GPUS["H200"]
    dropout = {"lora_dropout": 0.1}  # by PEFT: by hand, a decoded layer comes on top of what is quantised
    base = forecast(phi, recipe_of(LoraConfig=dropout), FULL, gpu).memory_gb
    other = forecast(phi, recipe_of(BitsAndBytesConfig=section, LoraConfig=dropout), FULL, gpu).memory_gb
    assert other - base == pytest.approx(phi.weights * (size - NF4_DOUBLE) / 1e9)


def test_memory_grows_with_what_needs_it(phi: Shape) -> None:
    def memory(load: Load = FULL, **sections: Any) -> float:
        return forecast(phi, recipe_of(**sections), load, GPUS["H200"]).memory_gb

    for dropout in ({}, {"LoraConfig": {"lora_dropout": 0.1}}):
        assert memory(memory="lean", **dropout) < memory(memory="fast", **dropout)
    longer = [memory(replace(FULL, most_tokens=tokens)) for tokens in (1024, 4096, 16384)]
    assert longer == sorted(set(longer))
    ranks = [memory(LoraConfig={"r": r}) for r in (8, 64, 256)]
    assert ranks == sorted(set(ranks))
    assert memory(LoraConfig={"lora_dropout": 0.1}) > memory()
    paged = {"SFTConfig": {"optim": "paged_adamw_8bit"}}
    assert memory(**paged) < memory()


def test_only_lean_by_hand_keeps_layers_in_the_hosts_memory(phi: Shape) -> None:
    """Of 31 layers three tensors of 8,192 x 3,072 in 16 bit, each in the next power of two: 64 MiB."""
    load = replace(FULL, most_tokens=8192)

    def host(**sections: Any) -> float:
        return forecast(phi, recipe_of(**sections), load, GPUS["H200"]).host_gb

    assert host(memory="lean") == pytest.approx(31 * 3 * 2**26 / 1e9)
    assert host(memory="fast") == host(memory="lean", LoraConfig={"lora_dropout": 0.1}) == 0


def test_speed_is_in_the_order_of_the_gpus(phi: Shape) -> None:
    speeds = {name: forecast(phi, recipe_of(), FULL, gpu).tokens_per_s for name, gpu in GPUS.items()}
    assert speeds["H200"] >= speeds["H100"] > speeds["A100"] > speeds["A10"] > speeds["T4"] > 0
    fast = recipe_of(memory="fast")
    assert forecast(phi, fast, FULL, GPUS["A100"]).tokens_per_s > speeds["A100"]
    few = Load(tokens=64, trained=32, most_tokens=64, most_trained=32, longest=64)
    recorded = forecast(phi, recipe_of(), few, GPUS["A100"])
    assert recorded.tokens_per_s < speeds["A100"]
    assert not recorded.waits
    assert not forecast(phi, recipe_of(), FULL, GPUS["A100"]).waits
    assert not forecast(phi, recipe_of(memory="fast", precision="fp8"), FULL, GPUS["H100"]).waits
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    small = shape_of(LlamaConfig(**sizes))
    assert forecast(small, recipe_of(memory="fast"), replace(FULL, tokens=TOKENS + 100), GPUS["H100"]).waits


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("gpu", ["H200", "A100", "T4"])
def test_no_gpu_does_more_than_it_can(name: str, gpu: str, shapes: dict[str, Shape]) -> None:
    plan = forecast(shapes[name], recipe_of(), FULL, GPUS[gpu])
    mfu = plan.tokens_per_s * plan.flops_per_token / GPUS[gpu].peak
    assert 0.05 < mfu < 0.8
    assert plan.memory_gb > shapes[name].weights * NF4_DOUBLE / 1e9
    assert plan.memory_gb < 80


def test_operations_of_a_token(phi: Shape) -> None:
    """Forward and the inputs' gradient are 4 a frozen weight; full fine-tuning would be 6."""
    count = flops_per_token(phi, replace(FULL, longest=0), 0)
    head = 4 * 32064 * 3072 * 0.5
    assert count == 4 * phi.weights + head
    assert flops_per_token(phi, FULL, 0) > count


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("phi3.5-oasst1", "phi-3.5"),
        ("gemma-7b-quotes", "gemma-7b"),
        ("mistral-7b-sms", "mistral-7b"),
        ("gemma-2b-code", "gemma-2b"),
        ("qwen3-4b-oasst1", "qwen3-4b"),
        ("gemma-3-4b-oasst1", "gemma-3-4b"),
    ],
)
def test_the_projects_recipes_fit_on_one_gpu(recipe: str, name: str, shapes: dict[str, Shape]) -> None:
    loaded = load_recipe(RECIPES / f"{recipe}.yaml")
    tokens = loaded.sft.max_length * loaded.sft.per_device_train_batch_size
    load = Load(tokens, tokens / 2, tokens, tokens / 2, loaded.sft.max_length / 4)
    assert 2 < forecast(shapes[name], loaded, load, GPUS["H200"]).memory_gb < 140


@pytest.mark.parametrize(
    ("device", "known"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "4090"),
    ],
)
def test_gpus_by_their_names(device: str, known: str) -> None:
    assert gpu_of(device) is GPUS[known]


@pytest.mark.parametrize(
    "device", ["NVIDIA GeForce RTX 2060", "AMD Instinct MI300X", "NVIDIA L40", "NVIDIA T400", "RTX A1000"]
)
def test_other_gpus_get_no_forecast(device: str) -> None:
    assert gpu_of(device) is None


@pytest.mark.parametrize(("gigabytes", "mode"), [(141, "fast"), (40, "fast"), (24, "lean"), (8, "lean")])
def test_auto_is_the_fastest_mode_that_fits(gigabytes: int, mode: str, phi: Shape) -> None:
    settled = settle(recipe_of(), phi, FULL, GPUS["H200"], gigabytes * 1e9)
    assert settled.memory == mode
    assert settled.config_hash() == recipe_of().config_hash()  # it changes the time, not the result
    assert settle(recipe_of(memory="fast"), phi, FULL, GPUS["H200"], 1e9).memory == "fast"


@pytest.mark.parametrize(
    ("sections", "gpu", "expected"),
    [
        ({}, "H200", True),
        ({}, "3090", True),
        ({}, "T4", False),  # no bf16
        ({"LoraConfig": {"lora_dropout": 0.1}}, "H200", False),
        ({"LoraConfig": {"use_dora": True}}, "H200", False),
        ({"SFTConfig": {"fp16": True}}, "H200", False),
        ({"BitsAndBytesConfig": {"load_in_8bit": True}}, "H200", False),
        ({"fully_shard": True}, "H200", False),
    ],
)
def test_what_is_trained_by_hand(sections: dict[str, Any], gpu: str, expected: bool, phi: Shape) -> None:
    assert by_hand(phi, recipe_of(**sections), GPUS[gpu]) is expected


@pytest.mark.parametrize(
    ("config", "sections", "why"),
    [
        (CONFIGS["phi-3.5"], {}, ""),
        (CONFIGS["phi-3.5"], {"LoraConfig": {"use_dora": True}}, "LoraConfig.use_dora is set"),
        (Phi3Config(rope_parameters=PARTIAL), {}, ""),
        (LlamaConfig(attention_bias=True), {}, ""),
        (LlamaConfig(hidden_act="relu"), {}, "its activation is neither SiLU nor GELU"),
        (Qwen2Config(), {}, ""),
        (GraniteConfig(), {}, "a Granite 3.x has what those kernels lack (four scales"),
        (Starcoder2Config(), {}, "a starcoder2 is none of the families"),
    ],
)
def test_a_run_that_is_not_fused_says_why(config: Any, sections: dict[str, Any], why: str) -> None:
    shape, recipe = shape_of(config), recipe_of(**sections)
    line = unfused(shape, recipe)
    assert bool(line) is bool(why)
    assert why in line
    assert unfused(shape, recipe, torch.device("cpu")) == ""  # where nothing is fused
