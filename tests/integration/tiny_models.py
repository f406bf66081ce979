"""Small random checkpoints with the real tokenizers of five families, adapters for them, and their ids."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
)

from core.gguf_tokenizer import Tokens, read_tokens, write_tokenizer

CACHE = Path(__file__).resolve().parents[2] / ".cache"
VOCABULARIES = {
    "phi3": "llama.cpp/models/ggml-vocab-phi-3.gguf",
    "llama": "llama.cpp/models/ggml-vocab-llama-spm.gguf",
    "mistral": "llama.cpp/models/ggml-vocab-llama-spm.gguf",
    "gemma2": "gemma-3-270m.gguf",
    "gemma3": "gemma-3-270m.gguf",
}
TEMPLATES = {
    "phi3": "microsoft-Phi-3.5-mini-instruct.jinja",
    "gemma2": "google-gemma-2-2b-it.jinja",
    "gemma3": "google-gemma-2-2b-it.jinja",  # Gemma 3's own adds images to the same text
}
FAMILIES = tuple(VOCABULARIES)
_SCRATCH = tempfile.TemporaryDirectory(prefix="tiny-models-")

# Divisible by 256, so that every K-quant applies and none falls back.
WIDTHS = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,  # the usual 0.02 gives logits that hardly differ
}
CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "phi3": partial(
        Phi3Config,
        original_max_position_embeddings=512,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + i / 64 for i in range(32)],
            "long_factor": [1.0 + i for i in range(32)],
        },
    ),
    "llama": LlamaConfig,
    "mistral": partial(MistralConfig, head_dim=64, sliding_window=None),
    "gemma2": partial(Gemma2Config, head_dim=64, query_pre_attn_scalar=64, sliding_window=512),
    "gemma3": partial(Gemma3TextConfig, head_dim=64, query_pre_attn_scalar=64, sliding_window=512),
}


def is_there(family: str) -> bool:
    """Whether its vocabulary is; `tiny` skips a test without."""
    return (CACHE / VOCABULARIES[family]).is_file()


def tiny(family: str, folder: Path, **options: Any) -> Path:
    """Write a random bfloat16 checkpoint of `family` into the new `folder`; the same weights each time.

    Two layers, 256 wide, with the family's real vocabulary and chat template (Llama and Mistral have none);
    `options` are the configuration's.
    """
    source = CACHE / VOCABULARIES[family]
    if not source.is_file():
        pytest.skip(f"{source.name} is not in .cache/; run: make test")
    tokens = _tokens(source)
    vocab = tokens.file.vocab
    ids = {"bos_token_id": vocab.bos_id, "eos_token_id": vocab.eos_id, "pad_token_id": tokens.pad_id}
    config = CONFIGS[family](vocab_size=vocab.size, **(WIDTHS | ids | options))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # all ones, or zeros for Gemma: a norm that got lost would not be noticed
            parameter.data += torch.randn_like(parameter) * 0.1
    model.generation_config.eos_token_id = sorted(vocab.eog_ids)
    model.save_pretrained(folder)
    shutil.copytree(_tokenizer_files(source), folder, dirs_exist_ok=True)
    if family in TEMPLATES:
        template = CACHE / "llama.cpp/models/templates" / TEMPLATES[family]
        shutil.copy(template, folder / "chat_template.jinja")
    return folder


@cache
def _tokens(source: Path) -> Tokens:
    return read_tokens(source)


@cache
def _tokenizer_files(source: Path) -> Path:
    """Rebuild a tokenizer once for all tests: Gemma's takes 5 s."""
    folder = Path(_SCRATCH.name, source.stem)
    folder.mkdir()
    write_tokenizer(_tokens(source), folder, None)
    return folder


def lora(checkpoint: Path, folder: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> Path:
    """Write a PEFT adapter for `checkpoint` into the new `folder`, all of its weights random and none zero.

    `auto` loads the checkpoint; `options` are LoraConfig's, by default rank 8 on all linear layers. The
    same weights each time.
    """
    model = auto.from_pretrained(checkpoint, dtype=torch.bfloat16)
    wanted = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    torch.manual_seed(1)
    with warnings.catch_warnings():
        # peft 0.21 asks a transformers model for a property that transformers 5.23 has renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = get_peft_model(model, LoraConfig(**wanted))
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # a new adapter's B is zero: it changes nothing
            parameter.data += torch.randn_like(parameter) * 0.02
    adapted.save_pretrained(str(folder))
    return folder


def tokenizer_of(checkpoint: Path) -> Callable[[str], list[int]]:
    """Return the checkpoint's tokenizer: text to ids, special tokens parsed, no BOS added."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return partial(tokenizer.encode, add_special_tokens=False)


@contextmanager
def vocabulary(path: Path) -> Iterator[Callable[[str, bool], list[int]]]:
    """Load a GGUF's vocabulary alone; yield llama.cpp's tokenizer: (text, parse special tokens) to ids."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    vocab = llama_cpp.llama_model_get_vocab(model)

    def tokenize(text: str, special: bool) -> list[int]:
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), False, special)
        return list(ids[:count])

    yield tokenize
    llama_cpp.llama_model_free(model)
