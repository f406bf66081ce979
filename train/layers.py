"""Which layers of a model get an adapter, by PEFT's own rules, and how many parameters that trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import peft
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn

from train.sections import Lora


@dataclass(frozen=True)
class Linears:
    """The linear layers of one name and size; `keys` are their whole names in the model."""

    name: str
    out_features: int
    in_features: int
    keys: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.keys)

    @property
    def elements(self) -> int:
        """Logical weights, also where four-bit storage packs two of them into a byte."""
        return self.out_features * self.in_features * self.count


def linears(model: nn.Module) -> list[Linears]:
    """The linear layers that an adapter can go on, by name: all but the head."""
    found: defaultdict[tuple[str, int, int], list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            found[name.rpartition(".")[2], module.out_features, module.in_features].append(name)
    return [Linears(*key, tuple(names)) for key, names in found.items()]


def others(model: Any) -> dict[str, int]:
    """The parameters of each module that has some itself and is no linear layer, nor tied to the head."""
    head = model.get_output_embeddings().weight
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not isinstance(module, nn.Linear) and not any(parameter is head for parameter in own):
            found[name] = sum(parameter.numel() for parameter in own)
    return found


def lora_config(lora: Lora, there: Iterable[Linears]) -> peft.LoraConfig:
    """PEFT's settings of the adapter. Raises ValueError for what PEFT itself refuses."""
    wanted: Any = lora.target_modules
    if wanted == "all-linear":
        wanted = sorted({layer.name for layer in there})
    elif isinstance(wanted, list):
        keys = [key for layer in there for key in layer.keys]
        wanted = [name for name in wanted if any(_means(name, key) for key in keys)]
    return peft.LoraConfig(**lora.model_dump() | {"target_modules": wanted, "task_type": "CAUSAL_LM"})


def adapted_layers(lora: Lora, there: Sequence[Linears]) -> list[Linears]:
    """The layers that get an adapter, by PEFT's own rules; of each name only those that do."""
    config = lora_config(lora, there)
    found = (
        replace(layer, keys=tuple(key for key in layer.keys if check_target_module_exists(config, key)))
        for layer in there
    )
    return [layer for layer in found if layer.keys]


def targets(wanted: list[str] | str, there: Sequence[Linears]) -> tuple[list[str], list[str]]:
    """The names of layers that `target_modules` means, and those asked for that match nothing."""
    found = {layer.name for layer in adapted_layers(Lora(target_modules=wanted), there)}
    asked = [] if wanted == "all-linear" else [wanted] if isinstance(wanted, str) else wanted
    if isinstance(wanted, str):
        return sorted(found), [] if found else asked
    keys = [key for layer in there for key in layer.keys]
    return sorted(found), [name for name in asked if not any(_means(name, key) for key in keys)]


def _means(name: str, key: str) -> bool:
    """Whether a name in a list is that of the module `key`, by PEFT's rule."""
    return f".{key}".endswith(f".{name}")


def trainable(lora: Lora, there: Sequence[Linears], beside: Mapping[str, int] | None = None) -> int:
    """How many parameters are trained: r (in + out) a layer, the magnitudes of DoRA, what is trained whole.

    `beside`: what `others` found, of which modules_to_save chooses.
    """
    count = sum(
        size for name, size in (beside or {}).items() if name.endswith(tuple(lora.modules_to_save or ()))
    )
    for layer in adapted_layers(lora, there):
        for key in layer.keys:
            rank = lora.rank_pattern.get(get_pattern_key(list(lora.rank_pattern), key), lora.r)
            count += rank * (layer.in_features + layer.out_features) + lora.use_dora * layer.out_features
    return count
