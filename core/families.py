"""Families of models: what trains and converts, the text model of one that also sees, and what can't be done.

Everything is decided by config.json, before weights are fetched. What a library supports is asked of it:
transformers here, llama.cpp's converter in convert/. Only what neither of them says is in the tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Family:
    """A dense family that transformers and llama.cpp both know.

    A test takes those of tests/integration/family_models.py from rows to a GGUF and compares what the chat
    says with what PEFT says. No test does so for the others yet, which go through the same code.
    """

    title: str
    example: str  # on the hub, of a size for one GPU
    special: str  # what isn't as in Llama
    fused: bool = False  # whether train/fused has its passes; see train/fused/supports.py


# By the `model_type` of the text model.
FAMILIES = {
    "llama": Family(
        "Llama 2 and 3.x", "meta-llama/Llama-3.2-1B-Instruct", "3.1 and later scale RoPE by frequency", True
    ),
    "mistral": Family(
        "Mistral 7B, Nemo, Small", "mistralai/Mistral-7B-Instruct-v0.3", "head_dim apart from width", True
    ),
    "ministral3": Family(
        "Ministral 3",
        "mistralai/Ministral-3-3B-Instruct-2512-BF16",
        "YaRN, queries scaled by position; a part of Mistral3ForConditionalGeneration",
    ),
    "qwen2": Family(
        "Qwen2.5, Qwen2.5-VL", "Qwen/Qwen2.5-1.5B-Instruct", "biases of queries, keys, values", True
    ),
    "qwen3": Family("Qwen3, Qwen3-VL", "Qwen/Qwen3-4B", "norms of queries and keys; no biases", True),
    "gemma": Family("Gemma", "google/gemma-2b-it", "norms around 1, embedding scaled", True),
    "gemma2": Family(
        "Gemma 2", "google/gemma-2-2b-it", "scores and logits capped, every other layer local", True
    ),
    "gemma3_text": Family(
        "Gemma 3", "google/gemma-3-4b-it", "two RoPEs; from 4B on a part of Gemma3Config", True
    ),
    "gemma4_text": Family(
        "Gemma 4", "google/gemma-4-E2B-it", "wider global heads, shared keys and values, embeddings per layer"
    ),
    "phi3": Family(
        "Phi-3.5, Phi-4-mini", "microsoft/Phi-3.5-mini-instruct", "joined matrices, LongRoPE, partial", True
    ),
    "smollm3": Family("SmolLM3", "HuggingFaceTB/SmolLM3-3B", "no RoPE in every fourth layer", True),
    "granite": Family("Granite 3.x", "ibm-granite/granite-3.3-2b-instruct", "four scales, one of the logits"),
    "olmo2": Family("OLMo 2", "allenai/OLMo-2-0425-1B-Instruct", "norms after the layers, of whole q and k"),
}
# Text models that transformers has only as a part: on text alone they compute what these do, given these
# keys. Positions in several dimensions (`mrope_section`) are then all the same number.
TEXT_TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl_text": ("qwen2", {}),
    "qwen2_5_vl_text": ("qwen2", {}),
    "qwen3_vl_text": ("qwen3", {}),
    "gemma4_unified_text": ("gemma4_text", {"hidden_size_per_layer_input": 0}),
}
# What to train instead of what can't be trained, by how its `model_type` begins.
INSTEAD = {
    "mixtral": "mistral",
    "mistral": "ministral3",
    "llama4": "llama",
    "mllama": "llama",
    "gemma": "gemma3_text",
    "t5gemma": "gemma3_text",
    "recurrent_gemma": "gemma2",
    "granite": "granite",
    "olmo": "olmo2",
    "phi": "phi3",
}
OTHERWISE = "qwen3"
# Text models that transformers writes with and llama.cpp's converter doesn't know. A test asks both.
NOT_IN_LLAMA_CPP = {
    "bert", "big_bird", "biogpt", "blt", "camembert", "codegen", "cohere_compass_text", "cpmant", "ctrl",
    "cwm", "data2vec-text", "diffllama", "electra", "ernie", "fuyu", "git", "gpt_neo",
    "gpt_neox_japanese", "gptj", "helium", "hyperclovax", "megatron-bert", "ministral",
    "modernbert-decoder", "moshi", "nanochat", "openai-gpt", "opt", "persimmon",
    "phi4_multimodal", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "trocr", "vaultgemma", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
}  # fmt: skip

EXPERTS = re.compile(r"(num_|n_)(local_|routed_)?experts|moe_num_experts|num_moe_experts")
# Layers that hand a state from one token to the next: "linear_attention", "mamba", "conv", "recurrent"...
ATTENTION = re.compile(r"(full_|sliding_|chunked_)?attention")
RECURRENT = re.compile(r"mamba|rwkv|xlstm|recurrent|lru_|ssm_|conv_L_cache|linear_conv_kernel")
WRITERS = re.compile(r"ForCausalLM|LMHeadModel|ForConditionalGeneration|LMHead$")

# Where a checkpoint with several parts keeps its text model: `language_model.model.` (as Gemma 3 and Mistral
# were published), `model.language_model.` (transformers since 4.52), or as a text model does (Qwen2-VL).
PREFIX = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?")
OWN = re.compile(r"^(model\.(embed_tokens|layers|norm)|lm_head)\.")
WHOLE = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "quantization_config")
INSIDE = "model.language_model."  # where transformers, and PEFT with it, has the text model today


def text_name(name: str) -> str | None:
    """The name of a text model's tensor or module; None for one of another part."""
    if found := PREFIX.match(name):
        rest = name[found.end() :]
        return rest if rest.startswith("lm_head") else f"model.{rest}"
    return name if OWN.match(name) else None


def whole_name(name: str) -> str:
    """The reverse, as transformers and PEFT name a text model's modules in a model with several parts."""
    return INSIDE + name.removeprefix("model.") if name.startswith("model.") else name


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the text model alone, with `part_of` for a model that has more; else `config`.

    Token ids, dtype and tied embeddings that only the whole configuration has are carried over.
    """
    from transformers import AutoConfig

    text = config.get_text_config(decoder=True)
    if text is config:
        return config
    values = text.to_dict()
    kind = str(values.pop("model_type"))
    if kind in TEXT_TWINS:
        kind, own = TEXT_TWINS[kind]
        values |= own
        sections = ("mrope_section", "mrope_interleaved")
        rope = {key: value for key, value in values["rope_parameters"].items() if key not in sections}
        values["rope_parameters"] = rope
    for key in WHOLE:
        if values.get(key) is None and hasattr(config, key):
            values[key] = getattr(config, key)
    values["tie_word_embeddings"] = config.tie_word_embeddings
    made: Any = AutoConfig.for_model(kind, **values)
    made.name_or_path, made.part_of = config.name_or_path, config.model_type
    alone: PreTrainedConfig = made
    return alone


def has_parts(config: Mapping[str, Any]) -> bool:
    """Whether the model of this config.json has other parts beside its text model: eyes, ears."""
    return _text_of(config) is not config or f"{config.get('model_type')}_text" in TEXT_TWINS


def text_options(config: PreTrainedConfig) -> dict[str, Any]:
    """What transformers' `from_pretrained` must be told to load the text model alone; else nothing."""
    text = text_config(config)
    return {} if text is config else {"config": text, "key_mapping": KEY_MAPPING}


# transformers' `key_mapping` that loads the text model alone from any of those checkpoints.
KEY_MAPPING = {
    r"^(?:model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head)": "model.",
}


def refusal(config: Mapping[str, Any], name: str) -> str | None:
    """Why a model of this config.json can't be trained and converted, and what can; None if it can.

    `config` is the whole file's content; `name` is how the model is called in the sentence.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return None  # other checks say what such a file lacks
    reason = _reason(config, kind)
    if reason is None:
        return None
    begins = next((start for start in sorted(INSTEAD, key=len, reverse=True) if kind.startswith(start)), "")
    family = FAMILIES[INSTEAD.get(begins, OTHERWISE)]
    instead = f"Take a dense text model, say {family.example} ({family.title})"
    return f"{name} can't be trained and converted here: {reason}. {instead}"


def _reason(config: Mapping[str, Any], kind: str) -> str | None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as WRITING

    text = _text_of(config)
    text_kind = str(text.get("model_type", kind))
    architectures = config.get("architectures") or []
    if config.get("is_encoder_decoder"):
        return f"a {kind} is an encoder with a decoder, and llama.cpp's chat takes decoders alone"
    inside = text.get("ffn_config")  # where a DBRX has them
    counts = [*text.items(), *(inside.items() if isinstance(inside, dict) else [])]
    if any(EXPERTS.fullmatch(key) and _many(value) for key, value in counts):
        return f"a {kind} is a mixture of experts, whose experts are no layers that a LoRA here goes on"
    layers = text.get("layer_types") or []
    recurrent = [str(layer) for layer in layers if not ATTENTION.fullmatch(str(layer))]
    if recurrent or RECURRENT.search(" ".join([text_kind, *map(str, text)])):
        if layers and not recurrent:  # dense Granite 4
            return f"a {kind} is of a class that carries a state along, and one without is untried"
        found = f" ({recurrent[0]})" if recurrent else ""
        return f"a {kind} has layers{found} that carry a state along, which rows packed together would mix"
    if architectures and not any(WRITERS.search(str(name)) for name in architectures):
        return f"{architectures[0]} is no model that writes"
    if kind not in CONFIG_MAPPING:
        code = "; it comes with code of its own, which is never run here" if "auto_map" in config else ""
        return f"transformers doesn't know the model type {kind!r}{code}"
    if text is not config and _twin(text_kind) not in WRITING:
        return f"the text part of a {kind} ({text_kind}) can't be had without its other parts"
    if text is config and kind not in WRITING and not has_parts(config):
        return f"transformers has no model of type {kind!r} that writes text"
    if text_kind == "gemma3n_text":
        return f"a {kind} hands several streams from layer to layer (AltUp), which no LoRA here goes on"
    if text_kind in NOT_IN_LLAMA_CPP:
        return f"llama.cpp, which the chat runs on, has no models of type {text_kind!r}"
    return None


def _text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the text model, as transformers' get_text_config has it."""
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        if isinstance(found := config.get(key), dict):
            return _text_of(found)
    return config


def _twin(kind: str) -> str:
    return TEXT_TWINS[kind][0] if kind in TEXT_TWINS else kind


def _many(value: Any) -> bool:
    counts = value if isinstance(value, list) else [value]
    return any(isinstance(count, int) and count > 1 for count in counts)


def complicated(pattern: str) -> bool:
    """Whether one of PEFT's expressions for the names of modules (`rank_pattern`) could run for years.

    It may come from a file that anyone has written.
    """
    return bool(re.search(r"\)[*+?{]", pattern)) or len(re.findall(r"[*+{]", pattern)) > 2


def is_match(pattern: str, module: str) -> bool:
    """Whether such an expression means a module, by the rule of PEFT's get_pattern_key. Raises re.error."""
    return bool(re.match(rf"(.*\.)?({pattern})$", module))
