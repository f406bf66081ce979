"""Quantise a checkpoint by GPTQ (arXiv 2210.17323), in the layout that train/gptq.py reads.

A layer's weights are rounded input by input; what an input's rounding costs is made up for by those that
aren't rounded yet, by the inverse of the layer's Hessian H = X X^T, X being what the layer sees of the
calibration text (the paper's algorithm 1, with its damping and its Cholesky factor). The grid is symmetric:
16 steps around 0 for each group of inputs of an output, set when its group's turn comes.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from core.errors import TrainError
from core.files import whole_folder, write_json
from core.tokenizer import ChatTokenizer
from train.gptq import INDEX

GROUP = 64  # inputs
DAMP = 0.01  # of H's mean diagonal is added to it, as the paper has
ZERO = 8  # of the values 0 to 15, what stands for 0
TOGETHER = 8  # windows in a batch
SMALL = (".json", ".jinja", ".model", ".txt")  # a checkpoint's files that hold no weights


def quantise_checkpoint(base: Path, out: Path, windows: torch.Tensor, device: torch.device) -> list[float]:
    """Write the 16-bit checkpoint `base` with 4-bit layers into the new folder `out`.

    `windows` (count, tokens) are the ids to calibrate on. Returns for each layer how many times its error is
    that of rounding to nearest: ||(W - Q) X||^2, both on the same grid. Raises TrainError.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    auto: Any = AutoModelForCausalLM  # untyped
    model = auto.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa").to(device).eval()
    stored = AutoConfig.from_pretrained(base).dtype or torch.bfloat16
    ratios: list[float] = []
    packed: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        calls = layer_calls(model, windows.to(device))
        for number, layer in enumerate(model.get_decoder().layers):
            linears = {name: part for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
            with _hessians(linears) as hessians:
                for hidden, options in calls:
                    layer(hidden, **options[number])
            for name, linear in linears.items():
                parts, made = gptq(linear.weight, hessians[name])
                nearest = round_to_nearest(linear.weight)
                plain = _cost(linear.weight - nearest, hessians[name])
                ratios.append(_cost(linear.weight - made, hessians[name]) / max(1e-30, plain))
                linear.weight.copy_(made)
                where = f"model.layers.{number}.{name}"
                packed |= {f"{where}.{part}": tensor.cpu() for part, tensor in parts.items()}
            calls = [(_first(layer(hidden, **options[number])), options) for hidden, options in calls]
    _write(model, packed, stored, base, out)
    return ratios


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, group: int = GROUP, damp: float = DAMP
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Quantise `weight` (out, in) by its `hessian` (in, in); return its parts and the weight they stand for.

    Raises TrainError for sizes that 32-bit words can't hold.
    """
    outputs, inputs = weight.shape
    if inputs % group or inputs % 8 or outputs % 8:
        raise TrainError(f"a layer of {inputs} x {outputs} has no groups of {group} in words of 8 values")
    left, factor = weight.float().clone(), _inverse_factor(hessian.float(), damp)
    values, scales = torch.empty_like(left), left.new_empty(inputs // group, outputs)
    for start in range(0, inputs, group):
        end = start + group
        block, errors = left[:, start:end].clone(), left.new_empty(outputs, group)
        scale = scales[start // group] = _scale(block)
        for at in range(group):
            row = factor[start + at, start:end]
            values[:, start + at] = _nearest(block[:, at], scale)
            error = (block[:, at] - (values[:, start + at] - ZERO) * scale) / row[at]
            block[:, at:] -= torch.outer(error, row[at:])
            errors[:, at] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    made = (values - ZERO) * scales.repeat_interleave(group, 0).T
    return pack(values, scales, group), made


def round_to_nearest(weight: torch.Tensor, group: int = GROUP) -> torch.Tensor:
    """`weight` (out, in) on the same kind of grid, each value by itself."""
    blocks = weight.float().view(len(weight), -1, group)
    scale = _scale(blocks)[..., None]
    return ((_nearest(blocks, scale) - ZERO) * scale).flatten(1)


def pack(values: torch.Tensor, scales: torch.Tensor, group: int) -> dict[str, torch.Tensor]:
    """The four parts of a layer as AutoGPTQ lays them out; `values` (out, in) are 0 to 15."""
    outputs, inputs = values.shape
    shifts = 4 * torch.arange(8, device=values.device)
    words = (values.T.long().reshape(-1, 8, outputs) << shifts[:, None]).sum(1)
    qweight = torch.where(words < 2**31, words, words - 2**32).int()
    zeros = torch.full((len(scales), outputs // 8), 0x77777777, dtype=torch.int32)  # each is stored less one
    g_idx = (torch.arange(inputs) // group).int()
    parts = {"qweight": qweight, "qzeros": zeros, "scales": scales.half(), "g_idx": g_idx}
    return {name: part.contiguous() for name, part in parts.items()}


def _scale(block: torch.Tensor) -> torch.Tensor:
    """The step of each output's grid over the last axis, as 16 bits can store it."""
    return (block.abs().amax(-1) / 7.5).clamp(min=1e-7).half().float()


def _nearest(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.clamp(torch.round(values / scale) + ZERO, 0, 15)


def _inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian."""
    diagonal = hessian.diagonal()
    unseen = torch.where(diagonal == 0, 1.0, 0.0)  # inputs that were always 0
    damped = hessian + torch.diag(unseen + damp * diagonal.mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _cost(error: torch.Tensor, hessian: torch.Tensor) -> float:
    """What an error of the weights (out, in) is in the layer's outputs: tr(E H E^T)."""
    return ((error.float() @ hessian) * error).sum().item()


@contextmanager
def _hessians(linears: dict[str, nn.Linear]) -> Iterator[dict[str, torch.Tensor]]:
    """Sum up X X^T of what each layer gets meanwhile."""
    found: dict[str, torch.Tensor] = {}

    def add(name: str, given: torch.Tensor) -> None:
        rows = given.flatten(0, -2).float()
        found[name] = found.get(name, 0) + rows.T @ rows

    hooks = [
        linear.register_forward_pre_hook(lambda _, given, name=name: add(name, given[0]))
        for name, linear in linears.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def layer_calls(model: Any, windows: torch.Tensor) -> list[tuple[torch.Tensor, list[dict[str, Any]]]]:
    """What the first layer gets of each batch, and with which options each layer is called: they differ where
    some see the whole context and some a window of it."""
    decoder, calls = model.get_decoder(), list[tuple[torch.Tensor, list[dict[str, Any]]]]()

    def note(layer: nn.Module, given: Any, options: dict[str, Any]) -> None:
        if layer is decoder.layers[0]:
            calls.append((given[0], []))
        calls[-1][1].append(options)

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in decoder.layers]
    try:
        for batch in torch.split(windows, TOGETHER):
            decoder(input_ids=batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _first(output: Any) -> torch.Tensor:
    """The hidden states of what a layer returns."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _write(model: Any, packed: dict[str, torch.Tensor], stored: torch.dtype, base: Path, out: Path) -> None:
    """The checkpoint: packed layers, all else as the base stores it, and the base's small files."""
    layers = {name.removesuffix(".qweight") + ".weight" for name in packed if name.endswith(".qweight")}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    rest = {
        name: tensor.to(stored).cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in layers | tied
    }
    about = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
    about |= {"damp_percent": DAMP, "checkpoint_format": "gptq"}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    with whole_folder(out) as partial:
        save_file(rest | packed, partial / "model.safetensors", metadata={"format": "pt"})
        write_json(partial / "config.json", config | {"quantization_config": about})
        for file in sorted(base.iterdir()):
            if file.suffix in SMALL and file.name not in ("config.json", INDEX):
                shutil.copyfile(file, partial / file.name)


def quantise_on_text(
    base: Path, out: Path, text: str, windows: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """Quantise `base` into `out`, calibrated on the beginning of a text: as many `windows` of as many tokens.

    Returns `ratios` as `quantise_checkpoint` has them, and the `windows` that there were: count, tokens.
    Raises TrainError.
    """
    count, length = windows
    given = windows_of(ChatTokenizer(base).encoder.tokenize(text, False), length, count)
    return {"ratios": quantise_checkpoint(base, out, given, device), "windows": list(given.shape)}


def said_of(made: Mapping[str, Any] | None) -> str:
    """What `quantise_on_text` made, in words; "" for nothing."""
    if not made:
        return ""
    ratios, (count, length) = made["ratios"], made["windows"]
    better = sum(ratio < 1 for ratio in ratios)
    return (
        f"On the {count} windows of {length} tokens that it was calibrated on, the squared error of a "
        "layer's outputs is below that of rounding to nearest in "
        f"{better} of {len(ratios)} layers, and in the median {statistics.median(ratios):.2f} times that "
        f"({min(ratios):.2f} to {max(ratios):.2f})."
    )


def windows_of(ids: Sequence[int], length: int, count: int) -> torch.Tensor:
    """The first `count` windows of `length` ids each, (windows, length). Raises TrainError for too few."""
    whole = min(count, len(ids) // length)
    if not whole:
        raise TrainError(f"{len(ids)} tokens to calibrate on make no window of {length}")
    return torch.tensor(ids[: whole * length]).view(whole, length)
