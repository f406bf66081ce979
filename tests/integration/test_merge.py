"""Our merge against PEFT's own, in fp32 and as stored, for each kind of adapter and base."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from convert.adapter import Adapter
from convert.merge import MergePlan
from core.checkpoint import INDEX, SINGLE, Checkpoint
from tests.integration.merge_bases import (
    LINEAR,
    changed,
    edit_json,
    load,
    load_resized,
    merged,
    peft_merged,
    save_adapter,
    save_base,
    save_tokenizer,
)

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 32},
    "rslora": {"r": 8, "lora_alpha": 16, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "by module": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 6, "o_proj": 3},
        "alpha_pattern": {
            "^model.layers.1.self_attn.q_proj": 3,
            r"layers\.\d+\.mlp\.down_proj": 5,
            "o_proj": 9,
        },
    },
}


def check_equal(base: Path, adapter: Path, out: Path, rows: int | None = None) -> Checkpoint:
    """Compare all tensors: to 1e-6 before rounding, and bit for bit as stored."""
    expected = peft_merged(base, adapter, rows).state_dict()
    before_rounding = Adapter(adapter)
    stored, made = Checkpoint(base), Checkpoint(merged(base, adapter, out))
    MergePlan(stored, before_rounding)
    for name in made.names:
        assert made.dtype(name) == stored.dtype(name if name in stored.names else stored.names[0])
        source = name if name in stored.names else "model.embed_tokens.weight"
        exact = before_rounding.merged(name, stored.read(source), torch.float32)
        assert torch.allclose(exact, expected[name], rtol=1e-6, atol=1e-6), name
        assert torch.equal(made.read(name), expected[name].to(made.dtype(name))), name
    assert set(made.names) | {"lm_head.weight"} == set(expected) | {"lm_head.weight"}
    return made


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma2"])
def test_equals_pefts_merge(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = save_base(kind, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=LINEAR[kind], **options)
    made = check_equal(base, adapter, tmp_path / "out")
    assert ("lm_head.weight" in made.names) == (kind != "gemma2")
    name = next(name for name in made.names if f"{LINEAR[kind][0]}.weight" in name)
    assert not torch.equal(made.read(name), Checkpoint(base).read(name))


@pytest.mark.parametrize("dora", [False, True])
def test_fan_in_fan_out(dora: bool, tmp_path: Path) -> None:
    base = save_base("gpt2", tmp_path / "base")
    options = {"r": 4, "fan_in_fan_out": True, "use_dora": dora}
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=LINEAR["gpt2"], **options)
    check_equal(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("dora", [False, True])
def test_lora_on_an_embedding(dora: bool, tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    options = {"r": 4, "target_modules": ["embed_tokens", "q_proj"], "use_dora": dora}
    check_equal(base, save_adapter(base, tmp_path / "adapter", **options), tmp_path / "out")


@pytest.mark.parametrize("bias", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}], ids=str)
def test_trained_biases(bias: dict[str, Any], tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(
        base, tmp_path / "adapter", r=4, target_modules=["q_proj"], use_rslora=True, **bias
    )
    made = check_equal(base, adapter, tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.bias"
    assert not torch.equal(made.read(name), Checkpoint(base).read(name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_base_keeps_its_type(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base", dtype)
    check_equal(base, save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"]), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(dtype)[6:]


def test_shards_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base("phi3", tmp_path / "base", shard="8KB")
    assert (base / INDEX).is_file()
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=LINEAR["phi3"])
    check_equal(base, adapter, tmp_path / "out")
    assert (tmp_path / "out" / SINGLE).is_file()
    monkeypatch.setattr("core.checkpoint.SHARD_BYTES", 10_000)
    made = check_equal(base, adapter, tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / INDEX).read_text())
    assert index["metadata"]["total_size"] == made.size_bytes
    assert len(set(index["weight_map"].values())) > 2
    assert load(tmp_path / "shards").config.vocab_size == 64  # transformers reads it


def test_modules_saved_whole_with_added_tokens(tmp_path: Path) -> None:
    base = save_base("phi3", tmp_path / "base")
    options = {"target_modules": LINEAR["phi3"], "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = save_adapter(base, tmp_path / "adapter", rows=70, **options)
    save_tokenizer(adapter, extra=("<a>", "<b>"))
    made = check_equal(base, adapter, tmp_path / "out", rows=70)
    assert made.shape("lm_head.weight") == made.shape("model.embed_tokens.weight") == (70, 32)
    assert made.config["vocab_size"] == 70
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 62
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"of the base"


def test_resized_and_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    base = save_base("gemma2", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", rows=70, target_modules=["q_proj"])
    made = check_equal(base, adapter, tmp_path / "out", rows=70)
    assert "lm_head.weight" not in made.names
    assert made.config["tie_word_embeddings"] is True


def test_a_tied_head_that_the_base_stored_twice_is_not_written(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    edit_json(base / "config.json", tie_word_embeddings=True)
    with changed(base / SINGLE) as tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    assert "lm_head.weight" in Checkpoint(base).names
    assert "lm_head.weight" not in Checkpoint(merged(base, adapter, tmp_path / "out")).names


UNTYING: list[dict[str, Any]] = [
    {"target_modules": ["lm_head", "q_proj"]},
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    {"target_modules": ["embed_tokens"], "rows": 70},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "rows": 70},
]


@pytest.mark.parametrize("options", UNTYING, ids=str)
def test_training_embedding_or_head_alone_unties_them(options: dict[str, Any], tmp_path: Path) -> None:
    """Against the adapter live on its base, which PEFT's own merge doesn't always equal."""
    base = save_base("llama-tied", tmp_path / "base", torch.float32)
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    out = merged(base, adapter, tmp_path / "out")
    assert "lm_head.weight" in Checkpoint(out).names
    assert Checkpoint(out).config["tie_word_embeddings"] is False
    same_logits(live(base, adapter, options.get("rows")), load(out))


TYING: list[dict[str, Any]] = [
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["embed_tokens"], "rows": 70},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
]


@pytest.mark.parametrize("options", TYING, ids=str)
@pytest.mark.parametrize("kind", ["llama-tied", "gemma2"])
def test_ensure_weight_tying_keeps_them_tied(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = save_base(kind, tmp_path / "base", torch.float32)
    adapter = save_adapter(base, tmp_path / "adapter", ensure_weight_tying=True, **options)
    out = merged(base, adapter, tmp_path / "out")
    assert "lm_head.weight" not in Checkpoint(out).names
    same_logits(live(base, adapter, options.get("rows")), load(out))


def live(base: Path, adapter: Path, rows: int | None) -> torch.nn.Module:
    """The adapter on its base, not merged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_resized(base, rows), adapter)


def same_logits(expected: torch.nn.Module, found: torch.nn.Module) -> None:
    ids = torch.arange(3, 50)[None]
    with torch.no_grad():
        assert torch.allclose(found(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)
