"""A base shared out among GPUs: each keeps its part, and layers are gathered when their turn comes.

That is PyTorch's `fully_shard` (FSDP2, arXiv 2304.11277) for the frozen weights alone. The adapter is small
and trained: each process has all of it and DistributedDataParallel averages its gradients, so that steps,
checkpoints and a resume are those of several GPUs without `fully_shard`.

Weights are quantised on the GPU one by one, as they are for one GPU, and wait on the host until they are
shared out. They travel as fp32, whatever bnb_4bit_quant_storage says: as bf16, bytes that look like NaN
arrive as another NaN (bitsandbytes issue 1945, seen on two H100), since PyTorch's copies compute in fp32; and
PyTorch 2.11 can't share out uint8. What is gathered is compared with what was shared out, before a step.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from core.errors import TrainError
from train.recipe import Recipe

QUANTISER = "bitsandbytes_4bit_on_gpu"
WITHOUT = "leave fully_shard out (--set fully_shard=false)"


def check(recipe: Recipe, device: torch.device, processes: int) -> None:
    """Raise TrainError where a base can't be shared out."""
    if not recipe.fully_shard:
        return
    if device.type != "cuda":
        raise TrainError(f"fully_shard shares a base out among CUDA GPUs, and there are none here; {WITHOUT}")
    if processes < 2:
        count = max(2, torch.cuda.device_count())
        launch = f"accelerate launch --num_processes {count} {shlex.join(sys.argv)}"
        raise TrainError(
            "fully_shard shares a base out among processes, one for each GPU, and there is one: start it "
            f"with {launch}, or {WITHOUT}"
        )


def on_gpu(config: BitsAndBytesConfig, device: torch.device) -> BitsAndBytesConfig:
    """The settings by which weights that are loaded on the host are quantised on `device`."""
    config.quant_method = QUANTISER  # type: ignore[assignment]
    config.quantised_on = device  # type: ignore[attr-defined]
    return config


class _OnGpu(Bnb4bitQuantize):
    """Quantises a weight on the GPU and gives it back to the host."""

    def convert(self, input_dict: dict[str, Any], **about: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        device = self.hf_quantizer.quantization_config.quantised_on
        made: dict[str, torch.Tensor] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            made |= super().convert({name: weight.to(device)}, **about)
        return {name: weight.to("cpu") for name, weight in made.items()}


@register_quantizer(QUANTISER)
class _Quantiser(Bnb4BitHfQuantizer):
    def get_quantize_ops(self) -> Bnb4bitQuantize:
        return _OnGpu(self)  # type: ignore[no-untyped-call]


@dataclass
class Shared:
    """A base that is shared out; `holder` has the head's weights: the head, or embeddings it is tied to."""

    holder: Any

    @contextmanager
    def head(self) -> Iterator[torch.Tensor]:
        """All of the head's weights, meanwhile."""
        self.holder.unshard()
        try:
            yield self.holder.weight
        finally:
            self.holder.reshard()


def shard(model: Any, device: torch.device) -> Shared:
    """Share out the frozen weights of `model`, a `train.model.Adapted` on the host.

    The rest of it moves to `device`. Raises TrainError where gathered bytes are others, and for a base that
    was quantised in 8 bit before.
    """
    base = model.base
    if any(parameter.dtype == torch.int8 for parameter in base.parameters()):
        raise TrainError(
            "fully_shard can't share out a base in 8 bit: give the 16-bit base with BitsAndBytesConfig: "
            f"{{load_in_4bit: true}}, or {WITHOUT}"
        )
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    embeddings = [module for module in decoder.modules() if isinstance(module, nn.Embedding)]
    tied = next((module for module in embeddings if module.weight is head.weight), None)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in [*decoder.layers, *embeddings, *([] if tied else [head])]:
        _move(part, device)
        weights = {name: weight for name, weight in part.named_parameters() if weight not in trained}
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
        _compare(part, {name: weight.data for name, weight in weights.items()})
    _move(decoder, device)
    # The last norm, and one order for all layers. Upstream would keep it gathered, on those processes that
    # don't save in between, and the others would wait for them forever.
    fully_shard(decoder, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    if tied:
        _share_head(head, tied)
    base._is_fsdp_managed_module = True  # transformers' generate then goes on until all processes have ended
    return Shared(tied or head)


def replicated(model: nn.Module, device: torch.device, settings: dict[str, Any]) -> nn.Module:
    """The model with gradients averaged over all processes; `settings` are DistributedDataParallel's."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    parallel: Any = DistributedDataParallel
    parallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    here = [device.index] if device.type == "cuda" else None
    made: nn.Module = parallel(model, device_ids=here, **settings)
    return made


def _move(module: nn.Module, device: torch.device) -> None:
    """Move what isn't shared out yet; packed weights become plain parameters beside their layers' states."""
    for part in module.modules():
        own: Any = part
        if (state := getattr(part, "quant_state", None)) is not None and type(own.weight) is not nn.Parameter:
            state.to(device)
            packed = own.weight.data.reshape(-1).view(torch.float32)
            own.weight = nn.Parameter(packed.unsqueeze(1), requires_grad=False)
        for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            if tensor.device != device:
                tensor.data = tensor.data.to(device)


def _compare(part: Any, weights: dict[str, torch.Tensor]) -> None:
    """Gather a part, compare its bytes with what they were, and let it go again. Raises TrainError."""
    part.unshard()
    for name, weight in part.named_parameters():
        if name in weights and not torch.equal(_bytes(weight), _bytes(weights[name])):
            raise TrainError(
                f"the weights of {name} aren't the same after they were sent from GPU to GPU with PyTorch "
                f"{torch.__version__} (as in bitsandbytes issue 1945); {WITHOUT}"
            )
    part.reshard()


def _bytes(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().contiguous().view(torch.uint8)


def _share_head(head: Any, embeddings: Any) -> None:
    """Let a head that is tied to the embeddings read theirs, which `fully_shard` doesn't know of."""

    def before(*_: Any) -> None:
        embeddings.unshard()
        head.weight = embeddings.weight

    def after(*_: Any) -> None:
        embeddings.reshard()
        head.weight = embeddings.weight

    head.weight = embeddings.weight
    head.register_forward_pre_hook(before)
    head.register_forward_hook(after)
