"""The state of a run on disk, so that it goes on bit by bit where it was: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core.files import whole_folder

State = dict[str, Any]  # step, epoch and what else the loop counts; JSON

_INSIDE = "//"
_WEIGHTS, _STATE, _OPTIMIZER, _RANDOM = "adapter.", "state.json", "optimizer.", "random."


def save_checkpoint(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, progress: State
) -> None:
    """Write adapter, optimizer, random generators and `progress` as `folder`; the one before goes last."""
    tensors = {_WEIGHTS + name: parameter.detach() for name, parameter in parameters.items()}
    state = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in _flat(values).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{_OPTIMIZER}{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    tensors |= {_RANDOM + name: value for name, value in _random_states().items()}
    # Paged states and shared memory can't be written as they are.
    plain = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    with whole_folder(folder) as partial:
        save_file(plain, partial / "state")
        content = {"progress": progress, "optimizer": numbers}
        (partial / _STATE).write_text(json.dumps(content), encoding="utf-8")


def load_checkpoint(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> State:
    """Bring everything back; `optimizer` is a new one over the same parameters."""
    content = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    tensors = load_file(folder / "state")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[_WEIGHTS + name])
    states: dict[int, dict[str, Any]] = {int(index): dict(v) for index, v in content["optimizer"].items()}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, _, key = name.removeprefix(_OPTIMIZER).partition(".")
            outer, _, inner = key.rpartition(_INSIDE)
            own = states.setdefault(int(index), {})
            (own.setdefault(outer, {}) if outer else own)[inner] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    _set_random_states(
        {name.removeprefix(_RANDOM): tensor for name, tensor in tensors.items() if name.startswith(_RANDOM)}
    )
    progress: State = content["progress"]
    return progress


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """bitsandbytes puts the states of its optimizers into a dict of their own."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}{_INSIDE}{inner}": part for inner, part in value.items()}
        else:
            flat[key] = value
    return flat


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
