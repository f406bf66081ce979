"""A base whose config.json and files disagree: what transformers would load wins, or both are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from convert.merge import is_tied
from core.checkpoint import SINGLE, Checkpoint
from core.errors import ConvertError
from core.files import read_json
from tests.integration.merge_bases import (
    changed,
    edit_json,
    load,
    merged,
    peft_merged,
    save_adapter,
    save_base,
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LOGITS = torch.arange(3, 50)[None]


def test_a_head_of_its_own_wins_over_a_config_that_ties_it(tmp_path: Path) -> None:
    """transformers' tie_weights leaves two tensors apart that are both there and differ."""
    base = save_base("llama", tmp_path / "base", torch.float32)
    edit_json(base / "config.json", tie_word_embeddings=True)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    out = merged(base, adapter, tmp_path / "out")
    assert read_json(out / "config.json")["tie_word_embeddings"] is False
    assert torch.equal(load_file(out / SINGLE)[HEAD], load_file(base / SINGLE)[HEAD])
    with torch.no_grad():
        expected, found = (model(LOGITS).logits for model in (peft_merged(base, adapter), load(out)))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_head_that_config_unties_and_no_file_holds(tmp_path: Path) -> None:
    base = save_base("llama-tied", tmp_path / "base")
    edit_json(base / "config.json", tie_word_embeddings=False)
    with pytest.raises(ConvertError, match=r"tie_word_embeddings False, but no file beside it holds lm_head"):
        is_tied(Checkpoint(base))


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("kind", ["gemma2", "cohere"])
def test_a_head_of_its_own_where_a_gguf_has_no_place_for_one(kind: str, ties: bool, tmp_path: Path) -> None:
    base = save_base(kind, tmp_path / "base")
    edit_json(base / "config.json", tie_word_embeddings=ties)
    with changed(base / SINGLE) as tensors:
        tensors[HEAD] = tensors[EMBEDDING].clone()
    assert is_tied(Checkpoint(base))
    with changed(base / SINGLE) as tensors:
        tensors[HEAD][5] += 1
    with pytest.raises(ConvertError, match=rf"a GGUF of {kind} has one place for both"):
        is_tied(Checkpoint(base))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"vocab_size": 70}, "says vocab_size 70, but its embedding has 64 rows"),
        ({"intermediate_size": 64}, "mlp.down_proj.weight of 32 x 64, and the file holds one of 32 x 48"),
        ({"num_attention_heads": 4, "head_dim": 16}, "of 32 x 64, and the file holds one of 32 x 32"),
        ({"num_hidden_layers": 3}, r"is in no file beside it (num_hidden_layers 3; the files hold 2)"),
        ({"num_hidden_layers": 1}, r"which its files hold (num_hidden_layers 1; the files hold 2)"),
        ({"attention_bias": False}, "a model without model.layers.0.self_attn.k_proj.bias and 7 more"),
        ({"hidden_size": 33}, "describes no model: "),
        ({"vocab_size": "64"}, "describes no model: "),
        ({"model_type": "florb"}, "transformers doesn't know the model type 'florb'"),
        ({"eos_token_id": 64}, "eos_token_id 64, and the embedding has 64 rows"),
    ],
    ids=str,
)
def test_sizes_that_disagree_are_both_named(keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    (base / "generation_config.json").unlink()
    edit_json(base / "config.json", **keys)
    with pytest.raises(ConvertError) as caught:
        merged(base, adapter, tmp_path / "out")
    assert said in str(caught.value)
    assert str(base) in str(caught.value)


def test_a_type_that_config_names_and_no_file_has(tmp_path: Path) -> None:
    """The stored values count: casting them would only lose, and training loads them as they are."""
    base = save_base("llama", tmp_path / "base", torch.float32)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    edit_json(base / "config.json", dtype="float16", torch_dtype="bfloat16")
    out = merged(base, adapter, tmp_path / "out")
    assert {Checkpoint(out).dtype(name) for name in Checkpoint(out).names} == {torch.float32}
    config = read_json(out / "config.json")
    assert (config["dtype"], config.get("torch_dtype")) == ("float32", None)
