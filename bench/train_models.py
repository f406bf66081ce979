"""Full-size bases with random weights for `bench/train.py`: speed and memory don't depend on the values."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from train.model import load_base
from train.recipe import Recipe

# The shapes of the models' own config.json.
_PHI = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32}
_GEMMA_7B = {
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
}
_GEMMA_2B = {
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
}
_SEVEN_B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
CONFIGS: dict[str, PreTrainedConfig] = {
    "microsoft/Phi-3.5-mini-instruct": Phi3Config(**_PHI, num_key_value_heads=32, vocab_size=32064),
    "google/gemma-7b-it": GemmaConfig(**_GEMMA_7B, num_key_value_heads=16, head_dim=256, vocab_size=256000),
    "google/gemma-2b-it": GemmaConfig(**_GEMMA_2B, num_key_value_heads=1, head_dim=256, vocab_size=256000),
    "mistralai/Mistral-7B-Instruct-v0.3": MistralConfig(
        **_SEVEN_B, intermediate_size=14336, num_key_value_heads=8, vocab_size=32768, sliding_window=None
    ),
    "Qwen/Qwen3-4B": Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "google/gemma-3-4b-it": Gemma3TextConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        vocab_size=262208,
        sliding_window=1024,
    ),
    "TheBloke/Llama-2-7b-Chat-GPTQ": LlamaConfig(**_SEVEN_B, intermediate_size=11008, vocab_size=32000),
}
CONFIGS["google/gemma-7b"] = CONFIGS["google/gemma-7b-it"]
CONFIGS["google/gemma-2b"] = CONFIGS["google/gemma-2b-it"]
GROUP = 128


def random_base(recipe: Recipe, device: torch.device, config: PreTrainedConfig) -> PreTrainedModel:
    """The recipe's base, quantised as the recipe says, from random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM
        empty = auto.from_config(config, dtype=torch.bfloat16)
    if recipe.gptq:
        return _random_gptq(empty, recipe, device, config)
    around_0 = config.model_type.startswith("gemma")  # which adds one to a norm's weight
    weights = {name: _random(name, p.shape, device, around_0) for name, p in empty.named_parameters()}
    return load_base(None, recipe, device, config=config, state_dict=weights, model_class=type(empty))


def save_random(config: PreTrainedConfig, folder: Path) -> None:
    """A checkpoint of random weights in bf16 and a tokenizer of as many words: other trainers want files."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(config.vocab_size - 3)}
    for word in ("<unk>", "<s>", "</s>"):
        words[word] = len(words)
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)


def _random(name: str, shape: torch.Size, device: torch.device, around_0: bool = False) -> torch.Tensor:
    made = torch.empty(shape, dtype=torch.bfloat16, device=device)
    if made.dim() == 1 and not name.endswith("bias"):  # a norm
        return made.fill_(0.0 if around_0 else 1.0)
    return made.normal_(std=0.02)


def _random_gptq(
    empty: Any, recipe: Recipe, device: torch.device, config: PreTrainedConfig
) -> PreTrainedModel:
    """A checkpoint of packed four-bit layers, written and loaded as a real one."""
    with tempfile.TemporaryDirectory() as folder:
        about = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
        content = config.to_dict() | {"quantization_config": about, "architectures": ["LlamaForCausalLM"]}
        Path(folder, "config.json").write_text(json.dumps(content))
        save_file(
            {name: part.cpu() for name, part in _packed(empty, device)}, Path(folder, "model.safetensors")
        )
        return load_base(folder, recipe, device)


def _packed(empty: Any, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in empty.named_parameters():
        if not name.endswith("proj.weight"):
            yield name, _random(name, parameter.shape, device)
            continue
        out, inner = parameter.shape
        stem = name.removesuffix("weight")
        high = 2**31 - 1
        yield (
            stem + "qweight",
            torch.randint(-high, high, (inner // 8, out), dtype=torch.int32, device=device),
        )
        yield (
            stem + "qzeros",
            torch.full((inner // GROUP, out // 8), 0x77777777, dtype=torch.int32, device=device),
        )
        yield stem + "scales", torch.full((inner // GROUP, out), 0.002, dtype=torch.float16, device=device)
        yield stem + "g_idx", torch.arange(inner, dtype=torch.int32, device=device) // GROUP
