"""Bases and adapters that can't be merged are refused in a sentence that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from convert.adapter import WEIGHTS
from core.checkpoint import INDEX, SINGLE
from core.errors import ConvertError
from tests.integration.merge_bases import changed, edit_json, merged, save_adapter, save_base, save_tokenizer

LORA_A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base("llama", tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])


def refusal(base: Path, adapter: Path) -> str:
    """The sentence; and nothing is left behind."""
    with pytest.raises(ConvertError) as caught:
        merged(base, adapter, base.parent / "out")
    assert not list(base.parent.glob("out*"))
    return str(caught.value)


def test_an_adapter_for_another_base(base: Path, tmp_path: Path) -> None:
    other = save_base("phi3", tmp_path / "other")
    adapter = save_adapter(other, tmp_path / "adapter", target_modules=["qkv_proj"])
    sentence = refusal(base, adapter)
    assert str(other) in sentence
    assert str(base) in sentence
    assert "qkv_proj" in sentence


def test_an_adapter_of_another_size(base: Path, adapter: Path) -> None:
    with changed(adapter / WEIGHTS) as tensors:
        tensors[LORA_A] = torch.ones(8, 48)
    assert "model.layers.1.self_attn.q_proj.weight is 32 x 48, the base's 32 x 32" in refusal(base, adapter)


def test_a_tensor_that_nobody_would_use(base: Path, adapter: Path) -> None:
    with changed(adapter / WEIGHTS) as tensors:
        tensors["base_model.model.model.extra.token_adapter"] = torch.ones(1)
    assert "extra.token_adapter" in refusal(base, adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite(base: Path, adapter: Path, value: float) -> None:
    with changed(adapter / WEIGHTS) as tensors:
        tensors[LORA_A][3, 3] = value
    assert f"{LORA_A} holds NaN" in refusal(base, adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [NORM, "model.layers.1.self_attn.q_proj.weight"])
def test_a_base_that_is_not_finite(base: Path, adapter: Path, value: float, name: str) -> None:
    with changed(base / SINGLE) as tensors:
        tensors[name].view(-1)[5] = value
    sentence = refusal(base, adapter)
    assert f"{name} holds NaN" in sentence
    assert str(base) in sentence


def test_an_update_beyond_the_range_of_the_base(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base", torch.float16)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], lora_alpha=10_000_000)
    assert "beyond the range of torch.float16" in refusal(base, adapter)


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"target_modules": ["embed_tokens"]}])
def test_a_head_of_its_own_that_a_gemma_has_no_place_for(
    options: dict[str, list[str]], tmp_path: Path
) -> None:
    base = save_base("gemma2", tmp_path / "base")
    sentence = refusal(base, save_adapter(base, tmp_path / "adapter", **options))
    assert "gemma2 has one place" in sentence
    assert "ensure_weight_tying" in sentence


def test_an_embedding_and_a_head_of_different_lengths(base: Path, tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = save_adapter(base, tmp_path / "adapter", rows=70, **options)
    with changed(adapter / WEIGHTS) as tensors:
        for name in [name for name in tensors if "lm_head" in name]:
            del tensors[name]
    assert "an embedding of 70 rows and a head of 64" in refusal(base, adapter)


def test_a_tokenizer_with_more_tokens_than_rows(base: Path, adapter: Path) -> None:
    save_tokenizer(adapter, extra=tuple(f"<{number}>" for number in range(5)))
    sentence = refusal(base, adapter)
    assert "has 65 tokens (the last is '<4>')" in sentence
    assert "64 rows" in sentence


@pytest.mark.parametrize(
    "content", [{"model": []}, {"added_tokens": [{"id": 1}]}, {"model": {"vocab": 3}}], ids=str
)
def test_a_broken_tokenizer(base: Path, adapter: Path, content: dict[str, object]) -> None:
    (base / "tokenizer.json").write_text(json.dumps(content))
    assert f"the tokenizer of {base / 'tokenizer_config.json'} is broken" in refusal(base, adapter)


def test_a_config_that_counts_other_tokens_than_its_embedding(base: Path, adapter: Path) -> None:
    edit_json(base / "config.json", vocab_size=100)
    assert "says vocab_size 100, but its embedding has 64 rows" in refusal(base, adapter)


@pytest.mark.parametrize("kind", ["phi3", "gemma2"])
def test_a_base_that_lost_its_tokenizer_model(kind: str, tmp_path: Path) -> None:
    base = save_base(kind, tmp_path / "base")
    (base / "tokenizer.model").unlink()
    sentence = refusal(base, save_adapter(base, tmp_path / "adapter", target_modules=["o_proj"]))
    assert f"a GGUF of a {kind} needs tokenizer.model" in sentence
    assert f"--local-dir {base}" in sentence


def test_a_base_without_any_tokenizer(base: Path, adapter: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "tokenizer.model").unlink()
    assert "needs tokenizer.model" in refusal(base, adapter)


def test_a_pickled_base(base: Path, adapter: Path) -> None:
    (base / SINGLE).rename(base / "pytorch_model.bin")
    assert "pickled weights (.bin)" in refusal(base, adapter)


def test_a_base_cut_short(base: Path, adapter: Path) -> None:
    (base / SINGLE).write_bytes((base / SINGLE).read_bytes()[:-100])
    assert "model.safetensors is not a whole safetensors file" in refusal(base, adapter)


def test_a_bitsandbytes_base(base: Path, adapter: Path) -> None:
    edit_json(
        base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    sentence = refusal(base, adapter)
    assert "is quantised (bitsandbytes)" in sentence
    assert "--base-model" in sentence


@pytest.fixture
def index(base: Path) -> dict[str, str]:
    """The weight_map of an index; the base's only file is now its one shard."""
    names = load_file(base / SINGLE).keys()
    (base / SINGLE).rename(base / "shard.safetensors")
    return dict.fromkeys(names, "shard.safetensors")


@pytest.mark.parametrize("file", ["../shard.safetensors", "/etc/passwd", "sub/shard.safetensors", 7])
def test_an_index_that_leaves_its_folder(
    base: Path, adapter: Path, index: dict[str, object], file: object
) -> None:
    (base / INDEX).write_text(json.dumps({"weight_map": index | {NORM: file}}))
    assert f"puts {NORM} into {file!r}, which is no file of that folder" in refusal(base, adapter)


def test_an_index_with_a_missing_shard(base: Path, adapter: Path, index: dict[str, str]) -> None:
    (base / INDEX).write_text(json.dumps({"weight_map": index | {NORM: "model-2.safetensors"}}))
    assert f"lacks model-2.safetensors, where {INDEX} puts {NORM}" in refusal(base, adapter)


def test_an_index_with_a_missing_tensor(base: Path, adapter: Path, index: dict[str, str]) -> None:
    (base / INDEX).write_text(json.dumps({"weight_map": index | {"model.more": "shard.safetensors"}}))
    assert "looks for model.more in shard.safetensors, where it isn't" in refusal(base, adapter)


def test_an_out_folder_that_is_there_is_left_alone(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConvertError, match="is there already"):
        merged(base, adapter, tmp_path / "there")
