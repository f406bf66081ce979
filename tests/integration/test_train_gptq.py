"""A small GPTQ checkpoint as the base of an adapter: its weights, its gradients, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from core.errors import TrainError
from core.gptq import open_checkpoint
from tests.integration.small_runs import NF4, recipe_of
from tests.integration.test_gptq import quantised
from train.gptq import GptqLinear, is_gptq, load
from train.session import Base

CPU = torch.device("cpu")
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
ABOUT = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": True, "checkpoint_format": "gptq"}


def packed_layers(state: dict[str, torch.Tensor], about: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a 16-bit Llama in GPTQ's form, with the zero biases and frequencies of old files."""
    tensors = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    for name, tensor in state.items():
        if "_proj.weight" in name:
            shape = (tensor.shape[0], tensor.shape[1])
            parts, _ = quantised(4, about["group_size"], about.get("desc_act", False), "gptq", shape)
            parts["scales"] = parts["scales"] / 8
            tensors |= {name.replace("weight", part): value.contiguous() for part, value in parts.items()}
            tensors[name.replace("weight", "bias")] = torch.zeros(shape[0]).half()
        else:
            tensors[name] = tensor.contiguous()
    return tensors


def save(folder: Path, **about: Any) -> Path:
    """Write a random GPTQ Llama."""
    about = ABOUT | about
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, **HEADS)
    tensors = packed_layers(LlamaForCausalLM(config).half().state_dict(), about)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    content = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": about}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def dense_twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with plain layers of the de-quantised weights."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, GptqLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight = nn.Parameter(module.weight.clone(), requires_grad=False)
            twin.set_submodule(name, linear)
    return twin


def adapted(model: PreTrainedModel, **options: Any) -> PeftModel:
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    made = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:  # zero at first: A would have no gradient
            parameter.data.normal_(std=0.02)
    assert isinstance(made, PeftModel)
    return made


def loss_of(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(2))
    logits = model(input_ids=ids).logits[:, :-1].float()
    return functional.cross_entropy(logits.reshape(-1, 96), ids[:, 1:].reshape(-1))


@pytest.mark.parametrize(
    "about", [{}, {"group_size": -1}, {"desc_act": True}, {"checkpoint_format": "gptq_v2"}]
)
def test_weights_are_those_that_the_conversion_reads(about: dict[str, Any], tmp_path: Path) -> None:
    folder = save(tmp_path / "base", **about)
    model = load(folder, torch.float16, CPU, "sdpa")
    checkpoint = open_checkpoint(folder)
    packed = [(name, module) for name, module in model.named_modules() if isinstance(module, GptqLinear)]
    assert len(packed) == 14
    for name, layer in packed:
        assert torch.equal(layer.weight, checkpoint.read(f"{name}.weight")), name
    assert torch.equal(model.lm_head.weight, checkpoint.read("lm_head.weight"))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_the_dense_model(
    autocast: bool, options: dict[str, Any], desc_act: bool, tmp_path: Path
) -> None:
    model = load(save(tmp_path / "base", desc_act=desc_act), torch.float32, CPU, "sdpa")
    twin = adapted(dense_twin(model), **options)
    ours = adapted(model, **options)
    for each in (ours, twin):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss_of(each).backward()
    expected = dict(twin.named_parameters())
    for name, parameter in ours.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=1e-5)


def test_the_loss_falls_and_the_base_stays(tmp_path: Path) -> None:
    ours = adapted(load(save(tmp_path / "base"), torch.float32, CPU, "sdpa"))
    ours.base_model.model.activation_checkpointing_enable({"use_reentrant": False})
    ours.train()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items() if "lora_" not in name}
    optimizer = torch.optim.AdamW([each for each in ours.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = loss_of(ours)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    for name, tensor in before.items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    with pytest.raises(ValueError, match="Cannot merge"):
        ours.merge_and_unload()


def test_nothing_de_quantised_waits_for_the_backward_pass(tmp_path: Path) -> None:
    model = adapted(load(save(tmp_path / "base"), torch.float32, CPU, "sdpa"))
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model)
    assert (2, 12, 64) in kept  # what an adapter's A was given
    assert not {(64, 64), (64, 128), (128, 64), (64, 32)} & set(kept)


def test_a_config_tells() -> None:
    assert is_gptq({"quantization_config": {"quant_method": "gptq"}})
    assert not is_gptq({"quantization_config": {"quant_method": "bitsandbytes"}})
    assert not is_gptq({})


@pytest.mark.parametrize(
    ("about", "reason"),
    [({"bits": 3}, "of 3 bits; only 4"), ({"checkpoint_format": "marlin"}, "GPTQ format 'marlin'")],
)
def test_other_kinds_are_refused(about: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=reason):
        load(save(tmp_path / "base", **about), torch.float32, CPU, "sdpa")


def test_recipe_and_base_agree_on_who_quantised_it(tmp_path: Path) -> None:
    folder, none = save(tmp_path / "base"), tmp_path / "none.jsonl"
    with pytest.raises(TrainError, match=r"is quantised by GPTQ: say GPTQConfig: \{bits: 4\}"):
        Base(recipe_of(folder, none, BitsAndBytesConfig=NF4))
    (folder / "config.json").write_text(json.dumps(LlamaConfig(**SIZES, **HEADS).to_dict()))
    with pytest.raises(TrainError, match="GPTQConfig is for a base that GPTQ quantised"):
        Base(recipe_of(folder, none, GPTQConfig={"bits": 4}))


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (f"{Q}.scales", None, "scales are missing"),
        (f"{Q}.scales", torch.ones(5, 64), "disagree"),
        (f"{Q}.g_idx", torch.full((64,), 9, dtype=torch.int32), "groups that have no scales"),
        (f"{Q}.qweight", None, "q_proj.scales has no place"),
        (f"{Q}.bias", torch.ones(64), f"{Q}.bias has no place"),
        ("model.norm.weight", None, "model.norm.weight is missing"),
        ("model.layers.7.self_attn.q_proj.qweight", torch.zeros(8, 64).int(), "no such layer"),
    ],
)
def test_a_broken_checkpoint_is_refused(
    name: str, value: torch.Tensor | None, reason: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    save_file(tensors | ({} if value is None else {name: value}), folder / "model.safetensors")
    with pytest.raises(TrainError, match=reason):
        load(folder, torch.float32, CPU, "sdpa")


def test_a_cut_file_and_two_files_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "base")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:5000])
    with pytest.raises(TrainError, match="not a whole safetensors file"):
        load(folder, torch.float32, CPU, "sdpa")
    (folder / "other.safetensors").write_bytes(whole)
    with pytest.raises(TrainError, match="has 2 safetensors files"):
        load(folder, torch.float32, CPU, "sdpa")
