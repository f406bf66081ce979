"""What neither verb takes is refused by both, by files' names and config.json, before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convert.source import find_source
from core.checkpoint import SINGLE
from core.errors import ChatError
from core.gptq import open_checkpoint
from train.base import load_config

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts"),
    "states": ({"model_type": "mamba", "state_size": 16}, "carry a state along"),
    "encoder": ({"model_type": "bert", "architectures": ["BertModel"]}, "no model that writes"),
    "unknown": ({"model_type": "novel"}, "doesn't know the model type"),
    "awq": ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "quantised (awq)"),
    "fp8": ({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}, "quantised (fp8)"),
    "mlx": ({"model_type": "llama", "quantization": {"bits": 4}}, "quantised (MLX)"),
}
FILES = {
    "mistral": (["consolidated.safetensors", "params.json", "tekken.json"], "its maker's own form"),
    "diffusers": (["model_index.json"], "a pipeline of diffusers"),
    "gguf": (["x-Q4_K_M.gguf"], "holds GGUF files"),
}


@pytest.mark.parametrize(("config", "said"), CONFIGS.values(), ids=CONFIGS)
def test_both_verbs_refuse_by_config_json(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / SINGLE).write_bytes(b"not looked at")
    with pytest.raises(ChatError) as trained:
        load_config(str(tmp_path), None)
    assert said in str(trained.value)
    with pytest.raises(ChatError) as converted:
        open_checkpoint(tmp_path)
    assert said in str(converted.value)


@pytest.mark.parametrize(("names", "said"), FILES.values(), ids=FILES)
def test_both_verbs_refuse_by_the_files_names(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ChatError) as trained:
        load_config(str(tmp_path), None)
    assert said in str(trained.value)
    with pytest.raises(ChatError) as converted:
        find_source(str(tmp_path), tmp_path / "outputs")
    assert said in str(converted.value)


def test_training_names_what_a_quantised_base_was_made_from(tmp_path: Path) -> None:
    about = {"model_type": "llama", "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "README.md").write_text("---\nbase_model: acme/Tiny-7B\n---\n")
    with pytest.raises(ChatError, match=r"is quantised \(awq\), .*: model\.base_model acme/Tiny-7B$"):
        load_config(str(tmp_path), None)


@pytest.mark.parametrize(
    ("changed", "said"), [({"bits": 8}, "of 8 bits; only 4"), ({"checkpoint_format": "marlin"}, "'marlin'")]
)
def test_training_refuses_other_gptq_layouts_by_config_json(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    about = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4} | changed}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ChatError, match=f"{said}.*; give the 16-bit model that it was made from"):
        load_config(str(tmp_path), None)
