"""Reading an adapter's folder: which update belongs to which tensor, and what is refused before any base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from convert.adapter import ADAPTER_CONFIG, WEIGHTS, Adapter
from core.errors import ConvertError

PREFIX = "base_model.model.model.layers.0."
PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "a/base"}


def write(folder: Path, config: dict[str, Any], **ranks: int) -> Path:
    """An adapter with one update of the given rank for each module, between 6 inputs and 4 outputs."""
    (folder / ADAPTER_CONFIG).write_text(json.dumps(PLAIN | config))
    tensors = {}
    for module, rank in (ranks or {"q_proj": 2}).items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.ones(rank, 6)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.ones(4, rank)
    save_file(tensors, folder / WEIGHTS)
    return folder


def scaling(folder: Path, module: str = "q_proj") -> float:
    return Adapter(folder).low_rank[f"model.layers.0.{module}.weight"].scaling


def test_scaling_is_alpha_by_rank_or_by_its_root(tmp_path: Path) -> None:
    assert scaling(write(tmp_path, {}, q_proj=4)) == 4
    assert scaling(write(tmp_path, {"use_rslora": True}, q_proj=4)) == 8


def test_alpha_pattern_follows_pefts_rule(tmp_path: Path) -> None:
    patterns = {"proj": 100, r"layers\.\d+\.q_proj": 6, "q_proj": 8, "^model.layers.0.k_proj": 10}
    write(tmp_path, {"alpha_pattern": patterns}, q_proj=2, k_proj=2, v_proj=2)
    assert [scaling(tmp_path, f"{letter}_proj") for letter in "qkv"] == [3, 5, 8]


@pytest.mark.parametrize("pattern", ["(a+)+", "(.*)*x", ".*.*.*q_proj"])
def test_a_pattern_that_could_run_for_years_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConvertError, match="too complicated"):
        Adapter(write(tmp_path, {"alpha_pattern": {pattern: 3}}))


def test_a_whole_update_is_the_product_of_its_parts(tmp_path: Path) -> None:
    adapter = Adapter(write(tmp_path, {"use_rslora": True}, q_proj=2))
    found = adapter.merged("model.layers.0.q_proj.weight", torch.zeros(4, 6), torch.float32)
    assert torch.allclose(found, torch.full((4, 6), 2 * 16 / math.sqrt(2)))
    assert adapter.merged("other", torch.ones(2), torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("alphas", [{"(": 3}, {"q_proj": "many"}])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, alphas: dict[str, object]) -> None:
    with pytest.raises(ConvertError, match="alpha_pattern"):
        Adapter(write(tmp_path, {"alpha_pattern": alphas}))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_an_initialisation_that_changed_the_base_is_refused(tmp_path: Path, start: str) -> None:
    with pytest.raises(ConvertError, match=f"'{start}', which changed the base's weights"):
        Adapter(write(tmp_path, {"init_lora_weights": start}))


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_an_initialisation_that_left_the_base_alone_is_fine(tmp_path: Path, start: object) -> None:
    Adapter(write(tmp_path, {"init_lora_weights": start}))


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "IA3"},
        {"alora_invocation_tokens": [5]},
        {"layer_replication": [[0, 2]]},
        {"target_parameters": ["experts"]},
        {"trainable_token_indices": [1]},
        {"use_qalora": True},
        {"lora_alpha": None},
        {"use_dora": True},  # without magnitudes
    ],
    ids=str,
)
def test_what_a_merge_cannot_express_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ConvertError, match=next(iter(config))):
        Adapter(write(tmp_path, config))


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, {}) / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ConvertError, match="safe_serialization=True"):
        Adapter(tmp_path)


def test_an_update_without_its_other_half_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {})
    save_file({f"{PREFIX}q_proj.lora_A.weight": torch.ones(2, 6)}, tmp_path / WEIGHTS)
    with pytest.raises(ConvertError, match=r"model.layers.0.q_proj lacks a lora_A and a lora_B"):
        Adapter(tmp_path)
