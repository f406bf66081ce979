"""GPTQ checkpoints (arXiv:2210.17323) as 16-bit ones: each weight is de-quantised when it is read.

The layout is AutoGPTQ's and GPTQModel's. For a layer of `in` x `out`, with `pack` = 32 / bits values a word,
the lowest bits first:

    qweight  int32 (in / pack, out)      qzeros  int32 (groups, out / pack)
    scales   f16   (groups, out)         g_idx   int32 (in): the group of each input, in any order (desc_act)

    W[o, i] = scales[g_idx[i], o] * (q[i, o] - z[g_idx[i], o])

`checkpoint_format` "gptq" stores each zero point less one, taken off the packed word as a whole; so the ones
are put back as a whole, too (GPTQModel, utils/model.py, convert_gptq_v1_to_v2_format_module). "gptq_v2"
stores zero points as they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from core.checkpoint import Checkpoint, TextCheckpoint
from core.errors import ConvertError
from core.families import has_parts, refusal
from core.files import read_json
from core.other_formats import method_of, quantised, quantised_by_name

FORMATS = ("gptq", "gptq_v2")
BITS = (2, 4, 8)
PARTS = ("qweight", "qzeros", "scales", "g_idx")
BLOCK_WORDS = 64  # rows of qweight that are unpacked at a time


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a 16-bit or a GPTQ checkpoint, of one with a vision part its text model.

    Raises ConvertError for other quantised ones, and for families that can't be converted.
    """
    refuse_quantised(folder, str(folder))
    if reason := refusal(read_json(folder / "config.json"), str(folder)):
        raise ConvertError(reason)
    checkpoint = Checkpoint(folder)
    if has_parts(checkpoint.config):
        return TextCheckpoint(folder)
    if checkpoint.config.get("quantization_config"):
        return GptqCheckpoint(folder)
    if any(name.endswith((".absmax", ".SCB")) for name in checkpoint.names):
        raise _quantised(folder, str(folder), "bitsandbytes")
    return checkpoint


def refuse_quantised(folder: Path, name: str) -> None:
    """Refuse what only its own library can read, by config.json: before weights are downloaded or read.

    `name`: what the model is called. Raises ConvertError, which names the 16-bit model where that is known.
    """
    method = method_of(read_json(folder / "config.json"))
    if method not in (None, "gptq"):
        raise _quantised(folder, name, str(method))


def refuse_quantised_name(name: str) -> None:
    """Refuse a hub's model that says in its name that bitsandbytes made it. Raises ConvertError."""
    if quantised_by_name(name):
        raise _quantised(None, name, "bitsandbytes")


def _quantised(folder: Path | None, name: str, method: str) -> ConvertError:
    why = "and an adapter is merged into 16-bit weights, as a GGUF is made of them"
    return ConvertError(quantised(method, name, folder, why, "--base-model"))


@cache
def _parameters(config: str) -> frozenset[str]:
    """The names of the parameters of the model that the content of a config.json describes."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig  # seconds to import

    content = json.loads(config)
    try:
        made = AutoConfig.for_model(**content)
        with torch.device("meta"):
            factory: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(made)]
            model: torch.nn.Module = factory(made)
    except (KeyError, ValueError, TypeError, AttributeError):
        return frozenset()  # whoever opened the checkpoint says what is wrong with its config
    return frozenset(name for name, _ in model.named_parameters())


@dataclass(frozen=True)
class _Layer:
    """A quantised layer; `shape` is (out, in)."""

    prefix: str
    bits: int
    shape: tuple[int, int]


class GptqCheckpoint(Checkpoint):
    """Looks like the 16-bit checkpoint that its layers stand for; its config says nothing of GPTQ."""

    def __init__(self, folder: Path) -> None:
        """Find the quantised layers. Raises ConvertError."""
        super().__init__(folder)
        about = self.config.pop("quantization_config")
        kind = about.get("checkpoint_format", "gptq")
        if kind not in FORMATS:
            raise ConvertError(f"{folder} has GPTQ format {kind!r}; only {' and '.join(FORMATS)} can be read")
        self._zeros_less_one = kind == "gptq"
        self._group_size = about.get("group_size", -1)
        prefixes = [name.removesuffix("qweight") for name in self._files if name.endswith(".qweight")]
        self._layers = {f"{prefix}weight": self._layer(prefix, about.get("bits")) for prefix in prefixes}
        for name in self._made_up(prefixes):
            del self._files[name]

    def _made_up(self, prefixes: list[str]) -> set[str]:
        """The biases of zero that AutoGPTQ gives to layers that have none in the model."""
        biases = {f"{prefix}bias" for prefix in prefixes} & self._files.keys()
        zero = {name for name in biases if not super(GptqCheckpoint, self).read(name).any()}
        return zero - _parameters(json.dumps(self.config)) if zero else zero

    def _layer(self, prefix: str, bits: object) -> _Layer:
        """Check the sizes of a layer's parts. `bits` is the config's, used where g_idx doesn't tell."""
        if missing := [part for part in PARTS[:3] if prefix + part not in self._files]:
            raise ConvertError(f"{self.folder}: {prefix}{missing[0]} is missing")
        (words, out), zeros, scales = (super(GptqCheckpoint, self).shape(prefix + part) for part in PARTS[:3])
        if prefix + "g_idx" in self._files:
            bits = 32 * words / super().shape(prefix + "g_idx")[0]
        if bits not in BITS:
            raise ConvertError(f"{self.folder}: {prefix}qweight has {bits} bits; only 2, 4 and 8 can be read")
        assert isinstance(bits, int | float)
        bits = int(bits)
        if scales != (scales[0], out) or zeros != (scales[0], out * bits // 32):
            raise ConvertError(f"{self.folder}: the sizes of {prefix}qweight, qzeros and scales disagree")
        return _Layer(prefix, bits, (out, words * 32 // bits))

    @property
    def names(self) -> list[str]:
        """All tensors; in place of each layer's four parts its weight."""
        kept = []
        for name in self._files:
            prefix, _, part = name.rpartition(".")
            if f"{prefix}.weight" not in self._layers or part not in PARTS:
                kept.append(name)
            elif part == "qweight":
                kept.append(f"{prefix}.weight")
        return kept

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, de-quantised."""
        return self._layers[name].shape if name in self._layers else super().shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor: that of its scales, if it is quantised."""
        return super().dtype(f"{self._layers[name].prefix}scales" if name in self._layers else name)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, de-quantised. Raises ConvertError."""
        if name not in self._layers:
            return super().read(name)
        layer = self._layers[name]
        qweight, qzeros, scales = (
            super(GptqCheckpoint, self).read(layer.prefix + part) for part in PARTS[:3]
        )
        group = self._groups(layer, len(scales))
        bits, mask = layer.bits, 2**layer.bits - 1
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        if self._zeros_less_one:
            qzeros = qzeros + sum(1 << shift for shift in range(0, 32, bits))
        zeros = (qzeros[:, :, None] >> shifts & mask).reshape(scales.shape)
        weight = torch.empty(layer.shape, dtype=scales.dtype)
        pack = 32 // bits
        for start in range(0, len(qweight), BLOCK_WORDS):
            words = qweight[start : start + BLOCK_WORDS]
            values = (words[:, None, :] >> shifts[:, None] & mask).reshape(-1, words.shape[1])
            inputs = slice(start * pack, start * pack + len(values))
            rows = group[inputs]
            weight[:, inputs] = (scales[rows].float() * (values - zeros[rows])).T
        return weight

    def _groups(self, layer: _Layer, count: int) -> torch.Tensor:
        """The group of each input, as a tensor of indices."""
        inputs = layer.shape[1]
        if f"{layer.prefix}g_idx" in self._files:
            group = super().read(f"{layer.prefix}g_idx").long()
        else:
            size = self._group_size if self._group_size > 0 else inputs
            group = torch.arange(inputs) // size
        if group.min() < 0 or group.max() >= count:
            raise ConvertError(f"{self.folder}: {layer.prefix}g_idx names groups that have no scales")
        return group
