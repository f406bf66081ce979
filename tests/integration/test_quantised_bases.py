"""Bases and adapters of other programs are recognised before a download, and what would work is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from convert.adapter import Adapter
from convert.base import find_base
from core.checkpoint import SINGLE
from core.errors import ConvertError
from core.gptq import open_checkpoint
from tests.integration.merge_bases import changed, save_base

METHODS: dict[str, dict[str, Any]] = {
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "fp8": {"quantization_config": {"quant_method": "fp8"}},
    "compressed-tensors": {"quantization_config": {"quant_method": "compressed-tensors"}},
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "MLX": {"quantization": {"group_size": 64, "bits": 4}},
}


@pytest.mark.parametrize(("method", "keys"), METHODS.items(), ids=METHODS)
def test_a_quantised_checkpoint_names_what_it_was_made_from(
    method: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    """By config.json alone: the weights may be of types that nothing here can read."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | keys))
    (tmp_path / SINGLE).write_bytes(b"not looked at")
    with pytest.raises(ConvertError, match=rf"is quantised \({method}\).*: --base-model DIR"):
        open_checkpoint(tmp_path)
    (tmp_path / "README.md").write_text("---\nbase_model:\n- acme/Tiny-7B\n---\n# Tiny\n")
    with pytest.raises(ConvertError, match=r": --base-model acme/Tiny-7B$"):
        open_checkpoint(tmp_path)


def test_bitsandbytes_weights_that_config_says_nothing_of(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    with changed(base / SINGLE) as tensors:
        tensors["model.layers.0.self_attn.q_proj.weight.absmax"] = torch.ones(4)
    with pytest.raises(ConvertError, match=r"is quantised \(bitsandbytes\)"):
        open_checkpoint(base)


@pytest.mark.parametrize(
    ("named", "sixteen"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "unsloth/Qwen3-4B"),
    ],
)
def test_an_unsloth_base_is_known_by_its_name(named: str, sixteen: str, tmp_path: Path) -> None:
    """Nothing is asked of the hub: there is none here."""
    about = {"peft_type": "LORA", "base_model_name_or_path": named}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(ConvertError, match=rf"\(bitsandbytes\).*: --base-model {sixteen}$"):
        find_base(tmp_path)


def test_an_mlx_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "my adapters"
    folder.mkdir()
    about = {"fine_tune_type": "lora", "lora_parameters": {"rank": 8}, "model": "mlx-community/Tiny-4bit"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    save_file({"model.layers.0.self_attn.q_proj.lora_a": torch.ones(4, 2)}, folder / "adapters.safetensors")
    with pytest.raises(ConvertError) as caught:
        Adapter(folder)
    assert f"mlx_lm.fuse --model mlx-community/Tiny-4bit --adapter-path '{folder}'" in str(caught.value)
