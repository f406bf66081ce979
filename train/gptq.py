"""A GPTQ checkpoint (arXiv 2210.17323) as the frozen base of an adapter, in plain PyTorch.

The layout is AutoGPTQ's and GPTQModel's. For a layer of `in` x `out`, eight numbers of 4 bits a word, the
lowest bits first:

    qweight  int32 (in / 8, out)     qzeros  int32 (groups, out / 8)
    scales   f16   (groups, out)     g_idx   int32 (in): the group of each input, in any order (desc_act)

    W[o, i] = scales[g_idx[i], o] * (q[i, o] - z[g_idx[i], o])

`checkpoint_format` "gptq" stores each zero point less one, taken off the packed word as a whole; "gptq_v2"
stores them as they are.

Exllama's kernels have no backward pass. gptqmodel's PyTorch layer has one, but there autograd keeps every
de-quantised weight until it is used: the memory of a 16-bit base. Here, only the packed ones are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from core.errors import TrainError

FORMATS = ("gptq", "gptq_v2")
PARTS = ("qweight", "qzeros", "scales", "g_idx")
INDEX = "model.safetensors.index.json"


def is_gptq(config: dict[str, Any]) -> bool:
    """Whether a config.json's content is that of a GPTQ checkpoint."""
    about = config.get("quantization_config")
    return isinstance(about, dict) and about.get("quant_method") == "gptq"


def load(folder: Path, dtype: torch.dtype, device: torch.device, attn_implementation: str) -> PreTrainedModel:
    """Load a GPTQ checkpoint with its layers packed and all else in `dtype`. Raises TrainError."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    about = config.quantization_config
    del config.quantization_config  # transformers would ask for gptqmodel
    check_layout(about, folder)
    print("GPTQ base: its weights stay packed and are de-quantised by train/gptq.py; gptqmodel isn't needed.")
    tensors = {name: tensor for file in _files(folder) for name, tensor in _read(file).items()}
    with init_empty_weights(include_buffers=False):
        auto: Any = AutoModelForCausalLM  # untyped
        model = auto.from_config(
            config, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=False
        )
    _replace_linears(model, tensors, about, folder)
    others = {name: tensor.to(dtype) for name, tensor in tensors.items() if tensor.is_floating_point()}
    unknown = model.load_state_dict(others, strict=False, assign=True).unexpected_keys
    # AutoGPTQ gives each layer a bias, zero where the model has none; old Llamas list their frequencies.
    lost = [name for name in unknown if not name.endswith("inv_freq") and others[name].any()]
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if lost or missing:
        kind, name = ("has no place in the model", lost[0]) if lost else ("is missing", missing[0])
        raise TrainError(f"{folder}: {name} {kind}; get the checkpoint again, whole")
    model.requires_grad_(False)
    model.quantization_method = "gptq"  # so that PEFT refuses to merge into weights that aren't there
    model.name_or_path = str(folder)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def check_layout(about: dict[str, Any], base: str | Path) -> None:
    """Raise TrainError for GPTQ weights that aren't read here; `about`: config.json's quantization_config."""
    cure = "give the 16-bit model that it was made from, with load_in_4bit or load_in_8bit"
    kind, bits = about.get("checkpoint_format", "gptq"), about.get("bits")
    if kind not in FORMATS:
        raise TrainError(
            f"{base} has GPTQ format {kind!r}; only {' and '.join(FORMATS)} can be trained on; {cure}"
        )
    if bits != 4:
        raise TrainError(f"{base} has GPTQ weights of {bits} bits; only 4 can be trained on; {cure}")


def _files(folder: Path) -> Iterator[Path]:
    """The safetensors files: those of the index, or else the only one."""
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        # By their plain names: an index can't point out of its folder.
        yield from (folder / Path(name).name for name in sorted(set(index["weight_map"].values())))
        return
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise TrainError(f"{folder} has {len(found)} safetensors files and no {INDEX}; get it again, whole")
    yield found[0]


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise TrainError(f"{file} is not a whole safetensors file ({error}); get it again") from None


def _replace_linears(
    model: nn.Module, tensors: dict[str, torch.Tensor], about: dict[str, Any], folder: Path
) -> None:
    """Put a GptqLinear in the place of each layer that `tensors` has packed, and take its parts out."""
    for prefix in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        parts = [tensors.pop(f"{prefix}.{part}", None) for part in PARTS]
        try:
            linear = model.get_submodule(prefix)
            if not isinstance(linear, nn.Linear):
                raise AttributeError
            model.set_submodule(prefix, GptqLinear(linear, parts, about))
        except AttributeError:
            raise TrainError(f"{folder}: {prefix} is packed, but the model has no such layer") from None
        except ValueError as error:
            raise TrainError(f"{folder}: {prefix}: {error}; get the checkpoint again, whole") from None


class GptqLinear(nn.Linear):
    """A frozen linear layer in 4 bits. PEFT takes it for what it derives from and puts its adapter on it."""

    packed: torch.Tensor  # uint8 (in / 2, out): two inputs' rows a byte, the first in the low bits
    zeros: torch.Tensor  # int8 (groups, out)
    scales: torch.Tensor  # fp32 (groups, out); as 16-bit ones bf16 training would round them
    g_idx: torch.Tensor | None  # int64 (in); None if the groups lie in order

    def __init__(
        self, linear: nn.Linear, parts: list[torch.Tensor | None], quantization_config: dict[str, Any]
    ) -> None:
        """Take the sizes and the bias of `linear`, the rest of `parts`, as PARTS. Raises ValueError."""
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.dtype = linear.weight.dtype
        qweight, qzeros, scales, g_idx = parts
        if qweight is None or qzeros is None or scales is None:
            raise ValueError("qzeros or scales are missing")
        size = quantization_config.get("group_size", -1)
        ordered = torch.arange(self.in_features) // (size if size > 0 else self.in_features)
        group = ordered if g_idx is None else g_idx.long()
        inputs, outputs, groups = self.in_features, self.out_features, len(scales)
        expected = [[inputs // 8, outputs], [groups, outputs // 8], [groups, outputs], [inputs]]
        if [list(part.shape) for part in (qweight, qzeros, scales, group)] != expected:
            raise ValueError("the sizes of qweight, qzeros, scales and g_idx disagree")
        if group.min() < 0 or group.max() >= groups:
            raise ValueError("g_idx names groups that have no scales")
        if quantization_config.get("checkpoint_format", "gptq") == "gptq":
            qzeros = qzeros + 0x11111111
        shifts = torch.arange(0, 32, 8, dtype=torch.int32)
        octets = (qweight[:, None, :] >> shifts[:, None] & 255).to(torch.uint8)
        nibbles = qzeros[:, :, None] >> torch.arange(0, 32, 4, dtype=torch.int32) & 15
        in_order = inputs % groups == 0 and torch.equal(group, torch.arange(inputs) // (inputs // groups))
        self.register_buffer("packed", octets.reshape(-1, self.out_features))
        self.register_buffer("zeros", nibbles.reshape(scales.shape).to(torch.int8))
        self.register_buffer("scales", scales.float())
        self.register_buffer("g_idx", None if in_order else group)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """The transposed weight, (in, out)."""
        rows = torch.stack((self.packed & 15, self.packed >> 4), 1).view(torch.int8)
        if self.g_idx is None:
            rows, zeros = rows.view(len(self.scales), -1, self.out_features), self.zeros[:, None]
            scales = self.scales[:, None]
        else:
            rows, zeros = rows.view(-1, self.out_features), self.zeros[self.g_idx]
            scales = self.scales[self.g_idx]
        made = torch.empty(rows.shape, dtype=dtype, device=rows.device)
        torch.mul(rows - zeros, scales, out=made)  # in fp32, rounded once
        return made.view(-1, self.out_features)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """A de-quantised copy, (out, in); what is written to it is lost."""
        return self.dequantise(self.dtype).T

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input` (..., in) times the weight, (..., out), in autocast's type or the input's."""
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        function: Any = _Product  # untyped
        product: torch.Tensor = function.apply(input, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """The product with a frozen weight that is de-quantised again for the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: GptqLinear) -> torch.Tensor:
        ctx.layer = layer
        return x @ layer.dequantise(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (grad,) = grads
        return functional.linear(grad, ctx.layer.dequantise(grad.dtype)), None
