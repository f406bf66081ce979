"""Small random checkpoints of families, those with a vision part as they are published.

Real vocabularies and templates where they are at hand; else another family's of the same kind of tokenizer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from chat.gguf_file import read_gguf
from tests.integration.tiny_models import CACHE, _tokenizer_files

MODELS = CACHE / "llama.cpp/models"
GEMMA = CACHE / "gemma-3-270m.gguf"
LLAMA3, QWEN = MODELS / "ggml-vocab-llama-bpe.gguf", MODELS / "ggml-vocab-qwen2.gguf"
STARCODER = MODELS / "ggml-vocab-starcoder.gguf"

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # the usual 0.02 gives logits that hardly differ
}
HEADS = {"head_dim": 32}  # apart from width / heads = 16, as in Nemo and Qwen3
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN_EYES = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "out_hidden_size": 64}
PIXTRAL = EYES | {"model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 16}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
    "llama_4_scaling_beta": 0.1,
}
GEMMA_TEXT = TEXT | HEADS | {"query_pre_attn_scalar": 32, "sliding_window": 16}


@dataclass(frozen=True)
class Small:
    """What a small model of a family is made of; `config` gets the vocabulary's size and special ids."""

    family: str  # in core.families.FAMILIES
    config: Callable[..., PreTrainedConfig]
    vocabulary: Path
    template: str = ""
    sees: bool = False  # whether the text model is one part of several
    options: dict[str, Any] = field(default_factory=dict)


def _whole(kind: str, text: dict[str, Any], **parts: Any) -> Callable[..., PreTrainedConfig]:
    """The configuration of a model with several parts; what a text model takes goes to the text part."""

    def make(**ids: Any) -> PreTrainedConfig:
        tied = {"tie_word_embeddings": parts.get("tie_word_embeddings", True)}
        config = getattr(transformers, kind)(text_config=text | ids | tied, **parts)
        assert isinstance(config, PreTrainedConfig)
        return config

    return make


def _text(kind: str, **values: Any) -> Callable[..., PreTrainedConfig]:
    return partial(getattr(transformers, kind), **(TEXT | values))


SMALL = {
    "Llama 3.2": Small(
        "llama",
        _text("LlamaConfig", rope_parameters=LLAMA_ROPE, tie_word_embeddings=True),
        LLAMA3,
        "meta-llama-Llama-3.2-3B-Instruct.jinja",
    ),
    "Ministral 3": Small(
        "ministral3",
        _whole(
            "Mistral3Config",
            TEXT | HEADS | {"model_type": "ministral3", "rope_parameters": YARN},
            vision_config=PIXTRAL,
            tie_word_embeddings=True,
        ),
        LLAMA3,
        sees=True,
    ),
    "Qwen3-VL": Small(
        "qwen3",
        _whole(
            "Qwen3VLConfig",
            TEXT | HEADS | {"rope_parameters": ROPE | {"mrope_interleaved": True}},
            vision_config=QWEN_EYES | {"deepstack_visual_indexes": [0]},
            tie_word_embeddings=True,
        ),
        QWEN,
        "Qwen-Qwen3-0.6B.jinja",
        sees=True,
    ),
    "Gemma 3 4B": Small(
        "gemma3_text",
        _whole(
            "Gemma3Config",
            GEMMA_TEXT
            | {
                "num_hidden_layers": 6,  # the sixth looks at all, and scales its RoPE
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
            vision_config=EYES | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
        ),
        GEMMA,
        "google-gemma-2-2b-it.jinja",  # Gemma 3's own adds pictures to the same text
        sees=True,
    ),
    "Granite 3.3": Small(
        "granite",
        _text(
            "GraniteConfig",
            embedding_multiplier=12.0,
            attention_multiplier=0.125,
            residual_multiplier=0.22,
            logits_scaling=8.0,
            tie_word_embeddings=True,
        ),
        STARCODER,  # its own is made the same way, with marks of turns that this one lacks
    ),
}


def small(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the checkpoint into the new `folder`, as transformers saves it: by the names of the hub."""
    about = SMALL[name]
    if not about.vocabulary.is_file():
        pytest.skip(f"{about.vocabulary.name} is not in .cache/; run: make test")
    vocab = read_gguf(about.vocabulary).vocab
    ids = {"bos_token_id": vocab.bos_id, "eos_token_id": vocab.eos_id, "pad_token_id": None}
    config = about.config(vocab_size=vocab.size, **ids, **about.options)
    torch.manual_seed(0)
    auto: Any = AutoModelForImageTextToText if about.sees else AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype)
    for parameter in (p for n, p in model.named_parameters() if "norm" in n):
        parameter.data += torch.randn_like(parameter) * 0.1  # one that got lost would not be noticed
    model.generation_config.eos_token_id = sorted(vocab.eog_ids)
    model.save_pretrained(folder)
    shutil.copytree(_tokenizer_files(about.vocabulary), folder, dirs_exist_ok=True)
    if about.template:
        shutil.copy(MODELS / "templates" / about.template, folder / "chat_template.jinja")
    return folder
