"""Check 0: the merged checkpoint does what base and adapter do together, as PEFT runs them.

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

import numpy as np
import torch

from convert.verify.adapted import Floats, Layer, probe
from convert.verify.limits import LAYER_ERROR, MERGE_KL, UPDATE_SHARE, Check, same_top_limit
from convert.verify.loss import GUESSES, judged
from core.checkpoint import Checkpoint
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
