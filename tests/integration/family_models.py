"""A small random checkpoint of each family that goes all the way, one with a vision part as it is published.

Real vocabularies and templates where they are at hand; else another family's of the same kind of tokenizer.
"""

from __future__ import annotations

import json
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

from core.gguf_model import read_gguf
from tests.integration.gemma4_tokenizer import gemma4_tokenizer
from tests.integration.tiny_models import CACHE, _tokenizer_files

MODELS = CACHE / "llama.cpp/models"
GEMMA, GEMMA4 = CACHE / "gemma-3-270m.gguf", MODELS / "ggml-vocab-gemma-4.gguf"
LLAMA3, QWEN = MODELS / "ggml-vocab-llama-bpe.gguf", MODELS / "ggml-vocab-qwen2.gguf"
SENTENCEPIECE, PHI3 = MODELS / "ggml-vocab-llama-spm.gguf", MODELS / "ggml-vocab-phi-3.gguf"
STARCODER, GPT2 = MODELS / "ggml-vocab-starcoder.gguf", MODELS / "ggml-vocab-gpt-2.gguf"

# As published: of Qwen's class transformers makes one with NFC, and the converter tells a Phi-4 by its own.
CLASSES = {QWEN: "Qwen2Tokenizer", GPT2: "GPT2Tokenizer"}

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
LONG = [1.0 + i / 4 for i in range(8)]
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
    "Mistral 7B": Small("mistral", _text("MistralConfig", sliding_window=None), SENTENCEPIECE),
    "Nemo": Small("mistral", _text("MistralConfig", sliding_window=None, **HEADS), STARCODER),
    "Ministral 3": Small(
        "ministral3",
        _whole(
            "Mistral3Config",
            TEXT | HEADS | {"model_type": "ministral3", "rope_parameters": YARN},
            vision_config=PIXTRAL,
            tie_word_embeddings=True,
        ),
        STARCODER,
        sees=True,
    ),
    "Qwen2.5": Small("qwen2", _text("Qwen2Config"), QWEN, "Qwen-Qwen2.5-7B-Instruct.jinja"),
    "Qwen3": Small(
        "qwen3", _text("Qwen3Config", tie_word_embeddings=True, **HEADS), QWEN, "Qwen-Qwen3-0.6B.jinja"
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
    "Gemma": Small(
        "gemma",
        _text("GemmaConfig", **HEADS),
        GEMMA,
        "google-gemma-2-2b-it.jinja",  # its own, which isn't at hand, has the same marks
    ),
    "Gemma 2": Small(
        "gemma2", partial(transformers.Gemma2Config, **GEMMA_TEXT), GEMMA, "google-gemma-2-2b-it.jinja"
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
    "Gemma 4 31B": Small(
        "gemma4_text",
        _whole(
            "Gemma4Config",
            GEMMA_TEXT
            | {
                "global_head_dim": 64,
                "num_global_key_value_heads": 1,
                "attention_k_eq_v": True,
                "hidden_size_per_layer_input": 0,
                "final_logit_softcapping": 30.0,
                "num_hidden_layers": 2,  # rounding four random ones to 16 bit alone gives 0.4 %
                "layer_types": ["sliding_attention", "full_attention"],
            },
            vision_config=EYES | {"head_dim": 16, "num_key_value_heads": 2},
            audio_config=None,
        ),
        GEMMA4,
        "google-gemma-4-31B-it.jinja",
        sees=True,
        options={"pad_token_id": 0},  # which its model puts where pictures are, none or not
    ),
    "Phi-3.5": Small(
        "phi3",
        _text(
            "Phi3Config",
            original_max_position_embeddings=256,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0 + i / 64 for i in range(8)],
                "long_factor": LONG,
            },
        ),
        PHI3,
        "microsoft-Phi-3.5-mini-instruct.jinja",
    ),
    "Phi-4-mini": Small(
        "phi3",
        _text(
            "Phi3Config",
            tie_word_embeddings=True,
            original_max_position_embeddings=256,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0] * 6,
                "long_factor": LONG[:6],
            },
        ),
        GPT2,
    ),
    "SmolLM3": Small(
        "smollm3", _text("SmolLM3Config", tie_word_embeddings=True), QWEN, "HuggingFaceTB-SmolLM3-3B.jinja"
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
    "OLMo 2": Small("olmo2", _text("Olmo2Config"), GPT2),
}


def small(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the checkpoint into the new `folder`, as transformers saves it: by the names of the hub."""
    about = SMALL[name]
    if not about.vocabulary.is_file():
        pytest.skip(f"{about.vocabulary.name} is not in .cache/; run: make test")
    folder.mkdir(parents=True)
    size, bos, eos, ends = _tokenizer(about, folder)
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": None}
    config = about.config(vocab_size=size, **(ids | about.options))
    torch.manual_seed(0)
    auto: Any = AutoModelForImageTextToText if about.sees else AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype)
    for parameter in (p for n, p in model.named_parameters() if "norm" in n):
        parameter.data += torch.randn_like(parameter) * 0.1  # one that got lost would not be noticed
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    if about.template:
        shutil.copy(MODELS / "templates" / about.template, folder / "chat_template.jinja")
    return folder


def _tokenizer(about: Small, folder: Path) -> tuple[int, int | None, int | None, list[int]]:
    """Write the tokenizer; return its size, the ids of BOS and EOS, and those that end a reply."""
    vocab = read_gguf(about.vocabulary).vocab
    if about.vocabulary == GEMMA4:
        new = gemma4_tokenizer(GEMMA4, folder)
        return len(new), new.get(vocab.bos_id), new.get(vocab.eos_id), sorted(new[i] for i in vocab.eog_ids)
    shutil.copytree(_tokenizer_files(about.vocabulary), folder, dirs_exist_ok=True)
    if published := CLASSES.get(about.vocabulary):
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": published}))
    return vocab.size, vocab.bos_id, vocab.eos_id, sorted(vocab.eog_ids)
