"""What is known of a model by its files' names and its config.json alone, before weights are fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.other_formats import method_of, other_format, sixteen_bit_name

WHOLE = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
MISTRAL = ["consolidated.safetensors", "params.json", "tekken.json"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (MISTRAL, "its maker's own form"),
        (["consolidated.00.pth", "params.json", "tokenizer.model"], "its maker's own form"),  # Llama's
        (["config.json", "consolidated.safetensors", "tekken.json"], "its maker's own form"),
        (["config.json", "model-00001-of-00002.safetensors", "tekken.json"], "tekken.json only"),
        (["model_index.json", "README.md"], "a pipeline of diffusers"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
        (["README.md", "x-Q4_K_M.gguf"], "holds GGUF files"),
    ],
)
def test_another_form_is_known_by_its_files(names: list[str], said: str) -> None:
    found = other_format(names, "'some/model'")
    assert found is not None
    assert found.startswith("'some/model' ")
    assert said in found


@pytest.mark.parametrize(
    "names",
    [
        WHOLE,
        [*WHOLE, *MISTRAL],  # both forms side by side, as Mistral publishes most
        [*WHOLE, "adapter_config.json", "x.gguf"],
        ["config.json", "model.safetensors", "tokenizer.model"],
        ["README.md"],
        [],
    ],
)
def test_a_checkpoint_of_transformers_is_none_of_them(names: list[str]) -> None:
    assert other_format(names, "x") is None


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "MLX"),
        ({"quantization_config": {"bits": 4}}, "by a method without a name"),
    ],
)
def test_the_method_of_quantised_weights(config: dict[str, Any], method: str | None) -> None:
    assert method_of(config) == method


@pytest.mark.parametrize(
    ("name", "card", "made_from"),
    [
        ("acme/Tiny-7B-Instruct-AWQ", "acme/Tiny-7B-Instruct", "acme/Tiny-7B-Instruct"),
        ("acme/Tiny-7B-Base-AWQ", "acme/Tiny-7B-Base", "acme/Tiny-7B-Base"),
        ("acme/Tiny-7B-Instruct", "acme/Tiny-7B-Base", ""),  # published as FP8: it was tuned from that
    ],
)
def test_the_model_before_tuning_is_not_what_was_quantised(
    name: str, card: str, made_from: str, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(f"---\nbase_model: {card}\n---\n")
    assert sixteen_bit_name(name, tmp_path) == made_from


def test_mistrals_fp8_has_a_twin() -> None:
    twin = "mistralai/Ministral-3-3B-Instruct-2512-BF16"
    assert sixteen_bit_name(twin.removesuffix("-BF16")) == twin
    assert sixteen_bit_name(twin) == ""
