"""Check: the merged checkpoint does what base and adapter do together, as PEFT runs them.

Every later check compares with the merged checkpoint, so an error of the merge would pass them all. Two
things are measured: the divergence of the predictions on the run's rows, and, for each adapted layer alone,
how much of its adapter's update has arrived. The second sees one layer that was left out among hundreds, or
an update that is small beside the rounding of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.gguf_reader import ReaderTensor

from convert.verify.adapted import Floats, Layer, probe
from convert.verify.limits import LAYER_ERROR, MERGE_KL, UPDATE_SHARE, Check, same_top_limit
from convert.verify.loss import GUESSES, judged
from convert.verify.tensors import GgufTensors
from core.checkpoint import Checkpoint
from core.gguf_reader import read_metadata
from core.log_probs import Scores

# What rounding makes of a layer's output, relative, in the type's own eps: a quarter of it, spread evenly.
ROUNDING = 1 / 4 / math.sqrt(3)
FP32_ROUNDING = 2**-23  # of a layer's output with its update, less that without
SURE = 5  # standard deviations


@dataclass(frozen=True)
class Arrived:
    """What of one layer's update is in the merged checkpoint.

    With b, a and m what base, adapted and merged layer make of the same numbers: `share` is the projection
    (m-b)(a-b) / |a-b|^2, 1 when all has arrived; `noise` is how far the rounding of the weights moves it, one
    standard deviation; `error` is |m-a| / |a|, which sees what isn't in the direction of the update.
    """

    name: str
    share: float
    noise: float
    error: float


@torch.inference_mode()
def arrived(model: Any, layers: Iterable[Layer], stored: torch.dtype = torch.bfloat16) -> list[Arrived]:
    """Compare each adapted layer with the merged model's, whose weights are rounded to the type `stored`.

    A layer that isn't there has no share at all.
    """
    modules = {plain(name): module for name, module in model.named_modules()}

    def outputs() -> Iterator[tuple[Layer, Floats | None]]:
        for layer in layers:
            module = modules.get(plain(layer.name))
            yield layer, None if module is None else module(probe(module)).float().numpy()

    rounding = max(ROUNDING * torch.finfo(stored).eps, FP32_ROUNDING)
    return [_arrived(layer, output, rounding) for layer, output in outputs()]


def coarsest_dtype(checkpoint: Path) -> torch.dtype:
    """The type of a checkpoint's tensors that rounds most. Raises ConvertError."""
    stored = Checkpoint(checkpoint)
    floats = {dtype for name in stored.names if (dtype := stored.dtype(name)).is_floating_point}
    return max(floats, key=lambda dtype: torch.finfo(dtype).eps)


def arrived_beside(outputs: Iterable[tuple[Layer, Floats | None]]) -> list[Arrived]:
    """Compare each adapted layer with what another program's makes of the same numbers, base and update
    apart: nothing is rounded to the base's type. None where a layer has no update."""
    return [_arrived(layer, output, FP32_ROUNDING) for layer, output in outputs]


def plain(name: str) -> str:
    """A module's name, the same for a text model alone and inside a model that reads pictures too."""
    return name.replace("language_model.", "").removeprefix("model.")


def _arrived(layer: Layer, output: Floats | None, rounding: float) -> Arrived:
    if output is None or output.shape != layer.adapted.shape:
        return Arrived(layer.name, math.nan, 0.0, math.nan)
    merged = output.astype(np.float64)
    adapted, base = layer.adapted.astype(np.float64), layer.base.astype(np.float64)
    update, off = adapted - base, merged - adapted
    size, of_update = np.linalg.norm(adapted), np.linalg.norm(update)
    error = float(np.linalg.norm(off) / size) if size else float(np.linalg.norm(off) > 0)
    if of_update == 0:  # an adapter that was never trained, or a module saved whole and left as it was
        return Arrived(layer.name, 1.0, 0.0 if error == 0 else math.inf, error)
    share = float(np.vdot(merged - base, update) / of_update**2)
    # Rounding goes in all directions; along the update lies one of so many parts of it.
    noise = rounding * size / of_update / math.sqrt(update.size)
    return Arrived(layer.name, share, float(noise), error)


def check_merge(
    scores: Scores, layers: Sequence[Arrived], guessing: bool = False, made: str = "merge"
) -> list[Check]:
    """Judge the merged checkpoint, or what else was `made`, against base and adapter.

    A model that only guesses has no likeliest token to keep.
    """
    _, kl, top = judged(made, scores, MERGE_KL, same_top_limit(MERGE_KL))
    if guessing and kl.verdict == "ok":
        top = replace(top, verdict="n/a", reason=GUESSES)
    return [kl, top, *_layers(layers, made)]


def not_merged(reason: str) -> list[Check]:
    """The row of the table for a way in on which there is nothing to merge."""
    return [Check("merge", "n/a", "nothing was merged", reason)]


def _layers(layers: Sequence[Arrived], made: str) -> list[Check]:
    if not layers:
        return [Check(f"{made}: layers", "fail", "0 layers", "PEFT finds no layer that the adapter changes")]
    clear = [layer for layer in layers if SURE * layer.noise <= UPDATE_SHARE.warn]
    away = max(clear, key=lambda layer: _wrong(layer.share), default=None)
    wrong = max(layers, key=lambda layer: math.inf if math.isnan(layer.error) else layer.error)
    figure = f"{len(clear)} of {len(layers)} layers"
    if away is None:
        shares = Check(f"{made}: updates", "n/a", figure, "each update is smaller than the weights' rounding")
    else:
        verdict = UPDATE_SHARE.judge(_wrong(away.share))
        said = f"{away.name} has {away.share:.3f} of its update; {UPDATE_SHARE.reason(verdict)}"
        least = min(layer.share for layer in clear)
        figure += f" have at least {least:.3f} of theirs"
        shares = Check(f"{made}: updates", verdict, figure, said if verdict != "ok" else "")
    verdict = LAYER_ERROR.judge(wrong.error)
    reason = "" if verdict == "ok" else f"{wrong.name}; {LAYER_ERROR.reason(verdict)}"
    return [shares, Check(f"{made}: layers", verdict, f"worst relative error {wrong.error:.2g}", reason)]


def _wrong(share: float) -> float:
    return abs(1 - share) if math.isfinite(share) else math.inf


SAME = 0.02  # relative: rounding to 16 bit makes 0.002, another order of rows about 1
MATCHED_ROWS = 32_768  # of a layer in another order; no layer but a vocabulary's has more


class LoraFile:
    """What an adapter's GGUF adds to each layer of its base's GGUF, for the same check.

    llama.cpp adds alpha / rank times B A (llm_graph_context::build_lora_mm), to embeddings before they are
    scaled (build_inp_embd). The converter may write a layer's rows in another order, which the base tells.
    """

    def __init__(self, base: Path, lora: Path) -> None:
        self._base, self._lora = GgufTensors(base).by_name, GgufTensors(lora).by_name
        about, own = read_metadata(base), read_metadata(lora)
        arch = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[
            str(about["general.architecture"])
        ]
        blocks = int(str(about[f"{about['general.architecture']}.block_count"]))
        self._names = gguf.get_tensor_name_map(arch, blocks)
        self._alpha = float(str(own["adapter.lora.alpha"]))

    def outputs(self, layers: Iterable[Layer]) -> Iterator[tuple[Layer, Floats | None]]:
        """Yield what becomes of each layer's probe with the file's update, None where the file has none.

        A layer that the base's GGUF holds in another form (one of several in one tensor) is left out.
        """
        for layer in layers:
            name = self._names.get_name(f"model.{plain(layer.name)}") or self._names.get_name(
                plain(layer.name)
            )
            base = self._base.get(f"{name}.weight")
            if base is None or (order := self._order(layer, f"{name}")) is None:
                continue
            update = self._update(layer, base.name)
            if update is not None:
                yield layer, layer.base + update[:, order[0]] * order[1]
            else:
                yield layer, layer.base if np.array_equal(layer.base, layer.adapted) else None

    def _order(self, layer: Layer, name: str) -> tuple[np.ndarray, float] | None:
        """Where each of the layer's outputs is in the base's GGUF, and how many times as large."""
        weight, given = _numbers(self._base[f"{name}.weight"]), layer.given().numpy()
        found = weight[given] if given.ndim == 1 else given @ weight.T
        if f"{name}.bias" in self._base:
            found = found + _numbers(self._base[f"{name}.bias"])
        if found.shape != layer.base.shape:
            return None
        scale = 1.0
        if given.ndim == 1:  # Gemma's embeddings are scaled when they are looked up
            scale = float(np.vdot(found, layer.base) / np.vdot(found, found))
        order = np.arange(found.shape[1])
        if not _same(found * scale, layer.base) and found.shape[1] <= MATCHED_ROWS:
            order = _nearest(found, layer.base)
        return (order, scale) if _same(found[:, order] * scale, layer.base) else None

    def _update(self, layer: Layer, name: str) -> Floats | None:
        left, right = self._lora.get(f"{name}.lora_b"), self._lora.get(f"{name}.lora_a")
        if left is None or right is None:
            return None
        b, a, given = _numbers(left), _numbers(right), layer.given().numpy()
        inner = a[given] if given.ndim == 1 else given @ a.T
        found: Floats = (self._alpha / b.shape[1] * (inner @ b.T)).astype(np.float32)
        return found


def _same(found: Floats, expected: Floats) -> bool:
    return bool(np.linalg.norm(found - expected) <= SAME * np.linalg.norm(expected))


def _nearest(found: Floats, expected: Floats) -> np.ndarray:
    """For each expected column, the found one that is most like it."""
    squares = np.sum(found**2, axis=0)
    blocks = np.array_split(np.arange(expected.shape[1]), -(-expected.shape[1] // 1024))
    return np.concatenate([np.argmin(squares - 2 * expected[:, b].T @ found, axis=1) for b in blocks])


def _numbers(tensor: ReaderTensor) -> Floats:
    found: Floats = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    return found
