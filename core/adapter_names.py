"""An adapter's files under the names of a text model alone, or of the model that it is a part of.

PEFT looks for modules by name. Training loads the text model alone, everybody else loads the base as it is
published, so an adapter is written with the names of the whole (`model.language_model.layers...`), and with
`target_modules` that leave its vision tower alone, whose layers are called the same.

A file may also hold the names of a live model, with what wrapped it while it trained (`saved_name`).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.errors import ConvertError
from core.families import INSIDE, text_name, whole_name
from core.files import ADAPTER_CONFIG, write_json

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT = "base_model.model."  # before each name in an adapter's file

# What torch.compile, DDP, FSDP and activation checkpointing put into names while a model is wrapped.
_WRAPPERS = re.compile(r"^(module\.)+|\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# PEFT saves names without the adapter's own ("default"), which stands before the field while it is live.
_PART = re.compile(
    r"(.+\.(?:lora_embedding_[AB]|lora_[AB]|lora_magnitude_vector))"
    r"(?:\.(?!(?:weight|bias)$)([^.]+))?(\.weight|\.bias)?"
)
_SAVED = re.compile(r"\.modules_to_save\.(?:([^.]+)\.)?(?=(?:weight|bias)$)")


def saved_name(key: str) -> tuple[str, str]:
    """The name under which PEFT saves the tensor `key` of a file, less PEFT's own prefix; and the adapter's.

    The second is empty where the key doesn't say it, as in all that PEFT saves.
    """
    name = _WRAPPERS.sub("", _WRAPPERS.sub("", key).removeprefix(PEFT))
    if found := _PART.fullmatch(name):
        return found[1] + (found[3] or ""), found[2] or ""
    saved = _SAVED.search(name)
    return _SAVED.sub(".", name).replace(".modules_to_save.", "."), (saved and saved[1]) or ""


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter under the names that PEFT loads; without its copies of what it replaced."""
    named = ((saved_name(key)[0], tensor) for key, tensor in load_file(folder / WEIGHTS).items())
    return {PEFT + name: tensor for name, tensor in named if ".original_module." not in name}


def names_whole(folder: Path) -> bool:
    """Whether an adapter is one for a model with more parts than its text model."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        names = [saved_name(key)[0] for key in file.keys()]  # noqa: SIM118  # it is no dict
    return any(text_name(name) not in (None, name) for name in names)


def text_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter under the names of the text model; those of other parts are left out."""
    return _renamed(load_file(folder / WEIGHTS), text_name)


def name_for_whole(folder: Path) -> None:
    """Rewrite in place the adapter of a text model alone as one for the whole model."""
    save_file(_renamed(load_file(folder / WEIGHTS), whole_name), folder / WEIGHTS, {"format": "pt"})
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    names = config.get("target_modules")
    if isinstance(names, str) or config.get("layers_to_transform") is not None:  # said by the text's names
        config |= {
            "target_modules": _modules(load_file(folder / WEIGHTS)),
            "layers_to_transform": None,
            "layers_pattern": None,
        }
    elif isinstance(names, list):
        inside = re.escape(INSIDE)
        config["target_modules"] = rf"{inside}(.*\.)?({'|'.join(map(re.escape, sorted(names)))})"
    write_json(folder / CONFIG, config)


def copy_for_text(folder: Path, out: Path) -> None:
    """Write into the new folder `out` the adapter as one for the text model alone."""
    tensors = text_tensors(folder)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(WEIGHTS))
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["target_modules"] = sorted({name.rpartition(".")[2] for name in _modules(tensors)})
    write_json(out / CONFIG, config)


def _modules(names: Iterable[str]) -> list[str]:
    """The modules that have an adapter, by the names of an adapter's tensors."""
    return sorted({name.removeprefix(PEFT).partition(".lora_")[0] for name in names if ".lora_" in name})


def _renamed(
    tensors: dict[str, torch.Tensor], rename: Callable[[str], str | None]
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if inside := rename(saved_name(name)[0]):
            found[PEFT + inside] = tensor
    return found


# Initialisations (PEFT's init_lora_weights) that take their start out of the base's weights, and LoftQ, whose
# adapter makes up for the error of a base quantised its own way. On the plain base each would count twice.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
UNSUPPORTED = {
    "alora_invocation_tokens": "aLoRA works from a certain token on, which no weights can express",
    "use_qalora": "QALoRA's updates pool the inputs, which a merge doesn't cover",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it changes parameters that are no layers (experts)",
    "trainable_token_indices": "it trains single tokens; list the embeddings in modules_to_save instead",
    "use_bdlora": "block-diagonal LoRA is not covered",
    "arrow_config": "Arrow mixes adapters by token, which no weights can express",
    "kasa_config": "KaSA cuts the base's weights down first",
    "monteclora_config": "MonteCLoRA samples its weights",
}


def refuse_kind(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what a merge can't express, by adapter_config.json. Raises ConvertError."""
    kind = config.get("peft_type")
    if kind is None and ("lora_parameters" in config or (folder / "adapters.safetensors").is_file()):
        base, path = shlex.quote(str(config.get("model") or "MODEL")), shlex.quote(str(folder))
        raise ConvertError(
            f"{folder} is an adapter of MLX, which keeps other tensors than PEFT; let MLX merge it, where it "
            f"runs: mlx_lm.fuse --model {base} --adapter-path {path} --save-path fused; then: "
            "python convert/to_gguf.py fused"
        )
    if kind != "LORA":
        raise ConvertError(f"{folder / ADAPTER_CONFIG}: peft_type is {kind!r}; only LORA can be merged")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGE_THE_BASE):
        raise ConvertError(
            f"{folder} was started with init_lora_weights={start!r}, which changed the base's weights, so it "
            "doesn't fit the base as published; save it as plain LoRA with PEFT's "
            "path_initial_model_for_weight_conversion, or train again without it"
        )
    for option, reason in UNSUPPORTED.items():
        if config.get(option):
            raise ConvertError(f"{folder} was trained with {option} and can't be merged: {reason}")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise ConvertError(f"{folder / ADAPTER_CONFIG} has no lora_alpha")
