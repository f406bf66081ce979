"""Base and adapter as PEFT runs them: what the merged checkpoint must be like.

The merge is our own code; here transformers loads the base and PEFT the adapter, as their users do, and
nothing is merged. Two things are kept for the comparison: the distributions on the rows, and what each
adapted layer makes of the same numbers alone, with and without its adapter. Arithmetic is fp32.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from convert.adapter import EMBEDDINGS, Adapter
from core.adapter_names import copy_for_text, names_whole, saved_tensors
from core.checkpoint import Checkpoint
from core.errors import ConvertError
from core.families import text_options
from core.gptq import GptqCheckpoint, open_checkpoint
from core.log_probs import LogProbs, float32_arithmetic, loading_dtype, log_probs
from core.rows import Row

PROBES = 16  # vectors that a layer is asked with; an 8B model's answers take 0.2 GB
ID_PROBES = 256  # ids that an embedding is asked with
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MergeInputs:
    """What was merged: `nf4` where it was merged on what NF4 leaves of the base."""

    base: Path
    adapter: Path
    nf4: bool = False


@dataclass(frozen=True)
class Layer:
    """What one adapted layer makes of `probe(...)`: without its adapter, and with it. Shapes are equal."""

    name: str  # in the model
    base: Floats
    adapted: Floats
    is_embedding: bool
    width: int  # of its inputs; of an embedding, the ids that it has

    def given(self) -> torch.Tensor:
        """What it was asked with."""
        return _probe(self.is_embedding, self.width)


class Adapted:
    """The base with its adapter on it, in memory until it is closed."""

    def __init__(self, source: MergeInputs) -> None:
        """Load both. Raises ConvertError."""
        self.source = source
        disable_progress_bar()  # type: ignore[no-untyped-call]  # there is one of ours
        stored = open_checkpoint(source.base)
        model = load_base(source.base, stored, loading_dtype(stored.size_bytes))
        if source.nf4:
            simulate_nf4(model, stored)
        float32_arithmetic(model)
        self.model: Any = with_adapter(model, source.adapter)

    def close(self) -> None:
        del self.model

    def log_probs(self, rows: Sequence[Row], on_row: Callable[[], None]) -> Iterator[LogProbs]:
        """Yield the distribution before each trained token, in the rows' order."""
        return log_probs(self.model, rows, on_row)

    @torch.inference_mode()
    def layers(self) -> Iterator[Layer]:
        """Ask each adapted layer alone, in the model's order."""
        for name, module in self.model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                base = module.get_base_layer()
            elif isinstance(module, ModulesToSaveWrapper):
                base = module.original_module
            else:
                continue
            given = probe(base)
            answers = _numbers(base(given)), _numbers(module(given))
            yield Layer(name, *answers, *_asked(base))


def load_base(folder: Path, stored: Checkpoint, dtype: torch.dtype | str) -> nn.Module:
    """Load a base as transformers does; a GPTQ one, which transformers runs on GPUs only, de-quantised.

    Raises ConvertError.
    """
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager", "trust_remote_code": False}
    try:
        if isinstance(stored, GptqCheckpoint):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            del config.quantization_config
            weights = {name: stored.read(name) for name in stored.names}
            factory: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # the automatic one wants a place
            model: nn.Module = factory.from_pretrained(None, config=config, state_dict=weights, **options)
        else:
            local: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(folder, **local, **text_options(config), **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConvertError(f"transformers can't load the base {str(folder)!r}: {reason}") from None
    return model.train(False)


def simulate_nf4(model: nn.Module, stored: Checkpoint) -> None:
    """Leave of each weight what NF4 left of it while the adapter was trained."""
    from convert import nf4  # bitsandbytes takes seconds to import

    dtype = next(stored.dtype(name) for name in stored.names if name.endswith(EMBEDDINGS))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and nf4.is_quantised(name, module.weight):
            original = module.weight.data.to(dtype)
            module.weight.data = nf4.simulate(original).to(module.weight.dtype)


def with_adapter(model: nn.Module, adapter: Path) -> nn.Module:
    """Put the adapter on its base. Raises ConvertError where PEFT doesn't find in one what the other has."""
    if not hasattr(model.config, "part_of") and not names_whole(adapter):
        return _with_adapter(model, adapter)
    with tempfile.TemporaryDirectory() as scratch:  # the text model alone, whose modules have other names
        copy_for_text(adapter, Path(scratch, "adapter"))
        return _with_adapter(model, Path(scratch, "adapter"))


def _with_adapter(model: nn.Module, adapter: Path) -> nn.Module:
    update = Adapter(adapter)
    found: Any = model
    if resized := next((name for name in update.whole if name.endswith(EMBEDDINGS)), None):
        found.resize_token_embeddings(update.whole_shape(resized)[0], mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on tied weights, for those who go on training
        try:
            config = PeftConfig.from_pretrained(str(adapter))
            config.inference_mode = True
            loaded: Any = get_peft_model(found, config)
            wrong = _load(loaded, saved_tensors(adapter))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            wrong = [" ".join(str(error).split())[:200]]
    if wrong:
        raise ConvertError(f"PEFT can't put {adapter} on its base: {wrong[0]}")
    evaluated: nn.Module = loaded.train(False)
    return evaluated


def _load(model: Any, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Give the model an adapter's tensors; return what is left over on either side."""
    found: Any = set_peft_model_state_dict(model, tensors)
    missing = [key for key in found.missing_keys if ".lora_" in key or ".modules_to_save." in key]
    # Resized embeddings that are also saved whole come twice; PEFT passes over the second.
    surplus = [f"no place for {key}" for key in found.unexpected_keys if ".lora_" in key]
    return [f"the file lacks {key}" for key in missing] + surplus


def probe(layer: nn.Module) -> torch.Tensor:
    """The numbers that a layer is asked with: the same for layers of the same size, random otherwise."""
    return _probe(*_asked(layer))


def _asked(layer: nn.Module) -> tuple[bool, int]:
    """Whether a layer is an embedding, and how many ids or inputs it takes."""
    if isinstance(layer, nn.Embedding):
        return True, layer.num_embeddings
    weight: Any = layer.weight
    return False, weight.shape[1] if isinstance(layer, nn.Linear) else weight.shape[0]  # GPT-2's Conv1D


def _probe(is_embedding: bool, width: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    if is_embedding:
        return torch.randint(width, (ID_PROBES,), generator=chance)
    return torch.randn(PROBES, width, generator=chance)


def _numbers(values: torch.Tensor) -> Floats:
    found: Floats = values.float().numpy()
    return found
