"""Tiny random models with a tokenizer, adapters for them by PEFT, and PEFT's own merge to compare with."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from convert.merge import merge

WORDS = 60  # in the tokenizer; the embedding has a few rows more
SIZES = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **WIDTHS, **IDS, attention_bias=True),
    "llama-tied": LlamaConfig(**SIZES, **WIDTHS, **IDS, tie_word_embeddings=True),
    "phi3": Phi3Config(**SIZES, **WIDTHS, **IDS),
    "gemma2": Gemma2Config(**SIZES, **WIDTHS, **IDS, head_dim=16),
    "cohere": CohereConfig(**SIZES, **WIDTHS, **IDS),
    "gpt2": GPT2Config(
        vocab_size=64, n_layer=2, n_head=2, n_embd=32, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|end|>{{ eos_token }}{% endfor %}"
LINEAR = {
    "llama": ["q_proj", "k_proj", "down_proj"],
    "llama-tied": ["q_proj", "k_proj", "down_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj"],
    "gemma2": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
}


def save_base(kind: str, folder: Path, dtype: torch.dtype = torch.bfloat16, shard: str = "1GB") -> Path:
    """Write a random model with values as large as a trained one's, and its tokenizer."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    save_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"of the base")
    return folder


def save_tokenizer(folder: Path, extra: tuple[str, ...] = ()) -> None:
    """Write a tokenizer of WORDS words and a few more."""
    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<|end|>"])}
    words |= {f"word{number}": number for number in range(len(words), WORDS)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
    )
    tokenizer.add_tokens(list(extra))
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> PreTrainedModel:
    """The model in fp32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def load_resized(folder: Path, rows: int | None) -> PreTrainedModel:
    """The model in fp32, with rows for added tokens."""
    model = load(folder)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def save_adapter(base: Path, folder: Path, rows: int | None = None, **options: Any) -> Path:
    """Train nothing, but give every parameter of a new adapter a value, as training would."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice about tied weights and embeddings
        model = load_resized(base, rows)
        peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        for name, parameter in peft.named_parameters():
            if "lora_magnitude" in name:
                parameter.data.mul_(1 + 0.1 * torch.rand_like(parameter))
            elif parameter.requires_grad:
                parameter.data.normal_(std=0.1)
        peft.save_pretrained(folder)
    return folder


def peft_merged(base: Path, adapter: Path, rows: int | None = None) -> PreTrainedModel:
    """PEFT's own merge in fp32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = PeftModel.from_pretrained(load_resized(base, rows), adapter)
        merged: PreTrainedModel = peft.merge_and_unload()
    return merged


def merged(base: Path, adapter: Path, out: Path) -> Path:
    """Our merge."""
    merge(base, adapter, out, lambda done, total: None)
    return out


@contextmanager
def changed(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of a file, to be changed: copies, for what is loaded is mapped to the file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    yield tensors
    save_file(tensors, path, {"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
