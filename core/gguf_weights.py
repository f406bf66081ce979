"""The configuration and the 16-bit weights of a GGUF, in transformers' words.

transformers loads such files too, but takes minutes for a large vocabulary and leaves out windows, caps and
scaled RoPE: the weights would be right and the answers would not, or only to long prompts. Its undoing of
llama.cpp's permutations and norm offsets is used here, and gguf-py's table of names. The fields are those
that llama.cpp's converter writes (conversion/*.py) and its src/models/*.cpp reads.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from core.errors import ConvertError
from core.gguf_model import GgufFile

_COMMON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_GEMMA = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# general.architecture -> transformers' model type, and fields beside the common ones
_FAMILIES: dict[str, tuple[str, dict[str, str]]] = {
    "llama": ("llama", {"rope.dimension_count": "head_dim"}),
    "qwen2": ("qwen2", {}),
    "phi3": (
        "phi3",
        {
            "attention.sliding_window": "sliding_window",
            "rope.scaling.original_context_length": "original_max_position_embeddings",
        },
    ),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", _GEMMA),
}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}  # these scale attention by width over heads, not by head size
_LLAMA3_CONTEXT = 8192  # with frequency factors 1 and 4, what Llama 3.1 to 3.3 were trained with


class Weights(gguf.GGUFReader):
    """gguf-py's reader without the lists: it would make a million small arrays of Gemma's tokens, in 19 s."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data = self.data.data
        kind, count = struct.unpack_from("<IQ", data, orig_offs)
        end = orig_offs + 12
        if kind != gguf.GGUFValueType.STRING:
            end += count * np.dtype(self.gguf_scalar_to_np[gguf.GGUFValueType(kind)]).itemsize
            count = 0
        for _ in range(count):
            end += 8 + struct.unpack_from("<Q", data, end)[0]
        return end - orig_offs, [], [], [gguf.GGUFValueType.ARRAY]


def read_tensors(file: GgufFile) -> list[gguf.ReaderTensor]:
    """Return the tensors of all parts of a model, on the disk still."""
    return [tensor for part in file.parts for tensor in Weights(part).tensors]


def read_config(file: GgufFile, tensors: list[gguf.ReaderTensor]) -> PreTrainedConfig:
    """Return the configuration that the file's fields describe. Raises ConvertError."""
    if file.architecture not in _FAMILIES:
        raise ConvertError(
            f"{file.path.name} is a {file.architecture!r} model; only {', '.join(_FAMILIES)} can be "
            "written out; get the original checkpoint from its hub instead"
        )
    metadata, _ = read_gguf_metadata(str(file.path))
    model_type, own = _FAMILIES[file.architecture]
    known: dict[str, Any] = {}
    for field, name in (_COMMON | own).items():
        value = metadata.get(f"{file.architecture}.{field}")
        if value:  # Phi writes 0 for no window
            known[name] = _decimal(value) if isinstance(value, float) else value
    known["vocab_size"] = file.n_vocab
    known["tie_word_embeddings"] = all(tensor.name != "output.weight" for tensor in tensors)
    if file.architecture in _LAYERS_OF_27B:
        wide = known["num_hidden_layers"] == _LAYERS_OF_27B[file.architecture]
        by_heads = known["hidden_size"] // known["num_attention_heads"]
        known["query_pre_attn_scalar"] = by_heads if wide else known["head_dim"]
    config = AutoConfig.for_model(model_type, **known)
    scaling = _scaling(config, tensors, metadata, file.architecture)
    config.rope_parameters.get("full_attention", config.rope_parameters).update(scaling)
    return config


def _decimal(value: float) -> float:
    """The short number that was rounded to 32 bits: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))


def _scaling(
    config: PreTrainedConfig, tensors: list[gguf.ReaderTensor], metadata: dict[str, Any], architecture: str
) -> dict[str, Any]:
    """Return what the file says about scaled RoPE, in transformers' words; nothing where it isn't scaled."""
    factors = {tensor.name: np.array(tensor.data, np.float32) for tensor in tensors if _is_rope(tensor.name)}
    if "rope_factors_long.weight" in factors:
        long, short = (factors[f"rope_factors_{length}.weight"] for length in ("long", "short"))
        lists = {"long_factor": [*map(_decimal, long)], "short_factor": [*map(_decimal, short)]}
        trained = config.original_max_position_embeddings
        return {"rope_type": "longrope", "original_max_position_embeddings": trained, **lists}
    if "rope_freqs.weight" in factors:
        return _llama3(config, factors["rope_freqs.weight"])
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata[f"{architecture}.rope.scaling.factor"]}
    if kind != "none":
        raise ConvertError(
            f"the model scales its positions by {kind!r}, which can't be carried over; "
            "get the original checkpoint from its hub instead"
        )
    return {}


def _is_rope(name: str) -> bool:
    return name.startswith("rope_f")  # factors and frequencies, which transformers keeps in the config


def _llama3(config: PreTrainedConfig, factors: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Find the scale that gives these factors by Llama 3's rule (LlamaModel in conversion/llama.py)."""
    scale = float(factors.max())
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    turns = _LLAMA3_CONTEXT * config.rope_parameters["rope_theta"] ** -exponents / (2 * math.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / scale + smooth), rtol=1e-3):
        raise ConvertError(
            "the model's RoPE factors are not those of Llama 3.1 to 3.3; get the original checkpoint instead"
        )
    return {
        "rope_type": "llama3",
        "factor": scale,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }


def storage_type(file: GgufFile) -> torch.dtype:
    """bfloat16 for a file that has it, which loses nothing; else float16, which loses least.

    The scales of quantised blocks are float16 themselves. Its steps are eight times finer than bfloat16's: on
    SmolLM2's Q4_1 it loses 0.02 % of the weights' size, bfloat16 0.14 % (root mean square).
    """
    return torch.bfloat16 if file.file_type == "BF16" else torch.float16


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model without weights: names and shapes only."""
    with torch.device("meta"):
        factory: Any = AutoModelForCausalLM  # untyped
        model: PreTrainedModel = factory.from_config(config)
        return model


def read_weights(
    file: GgufFile, tensors: list[gguf.ReaderTensor], model: PreTrainedModel, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """De-quantise tensor by tensor; yield each with transformers' name for it.

    Raises ConvertError for a tensor that is missing, left over, of another shape or not finite.
    """
    config = model.config
    heads = {name: getattr(config, name) for name in ("num_attention_heads", "num_key_value_heads")}
    architecture = next(arch for arch, (kind, _) in _FAMILIES.items() if kind == config.model_type)
    processor_class: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = processor_class(config=heads)
    names, path = _names(model, architecture), file.path
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    for stored in tensors:
        if _is_rope(stored.name):
            continue
        name = names.get(stored.name, "")
        values = gguf.dequantize(stored.data, stored.tensor_type)
        values = processor.process(values, stored.name).weights
        if shapes.pop(name, None) != values.shape:
            raise ConvertError(f"{path.name} has a tensor that transformers has no place for: {stored.name}")
        if not max(values.max(), -values.min()) <= torch.finfo(dtype).max:  # so that NaN fails too
            raise ConvertError(f"{path.name}: {stored.name} has values that are not finite in {dtype}")
        yield name, torch.tensor(values, dtype=dtype)
    if shapes:
        raise ConvertError(f"{path.name} lacks {min(shapes)}, which its architecture has; download it again")


def _names(model: PreTrainedModel, architecture: str) -> dict[str, str]:
    """Return transformers' names by the file's."""
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    names = {}
    for name in model.state_dict():
        stem, _, suffix = name.rpartition(".")
        names[f"{table.get_name(stem)}.{suffix}"] = name
    return names
