"""What is written of a run that ended: samples, pictures of loss and calibration, manifest and model card."""

from __future__ import annotations

import io
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core.files import RECORD, write_json, write_whole
from train import folder as files
from train.base import package_folder
from train.card import is_synthetic, table, unit_of, write_card
from train.evaluation import Progress
from train.run import Run
from train.tasks.sms_calibration import bins_in, draw_calibration

__all__ = ["plot_calibration", "plot_loss", "write_card", "write_samples"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRAINING, _VALIDATION = "#9db7d5", "#c2410c"


def write_samples(
    path: Path, prompts: Sequence[list[dict[str, str]]], before: Sequence[str], after: Sequence[str]
) -> None:
    """Write a Markdown table of chats (without their last reply) with the replies before and after."""
    rows = []
    for chat, *replies in zip(prompts, before, after, strict=True):
        turns = [message["content"] for message in chat]
        if len(chat) > 1:
            turns = [f"{message['role']}: {message['content']}" for message in chat]
        rows.append(("\n".join(turns), *(reply or "(empty)" for reply in replies)))
    intro = "# Samples\n\nThe same prompts, before and after the training; greedy replies.\n\n"
    write_whole(path, intro + table(("prompt", "before", "after"), rows) + "\n")


def plot_loss(metrics: Sequence[dict[str, Any]], path: Path, unit: str = "nats a token") -> None:
    """Draw a run's metrics as a PNG: training and validation loss, the best point marked."""
    from matplotlib.figure import Figure  # takes half a second; draws on Agg without pyplot's global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = _line(metrics, "loss")
    axes.plot(steps, losses, color=_TRAINING, linewidth=1.4, label="training")
    steps, losses = _line(metrics, "eval_loss")
    label = "validation"
    if len(losses) > 1:
        best, at = min(zip(losses, steps, strict=True))
        label = f"validation, best {best:.3f} at step {at}"
        axes.plot([at], [best], marker="o", markersize=12, fillstyle="none", color=_VALIDATION)
    axes.plot(steps, losses, color=_VALIDATION, linewidth=2, marker="o", markersize=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel=f"loss ({unit})")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def plot_calibration(scores: Mapping[str, Mapping[str, float]], path: Path, about: str = "") -> None:
    """Draw how likelihoods came true `before` and `after` the training; nothing where none were scored."""
    found = {f"{side} the training": bins_in(scores.get(side, {})) for side in ("before", "after")}
    if shown := {side: bins for side, bins in found.items() if bins}:
        colours = dict(zip(found, (_TRAINING, _VALIDATION), strict=True))
        _save(draw_calibration(shown, colours, f"Calibration on the test rows{about}"), path)


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())


def _line(metrics: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that hold a finite `key`."""
    points = [(line["step"], line[key]) for line in metrics if math.isfinite(line.get(key, math.nan))]
    return [step for step, _ in points], [value for _, value in points]


LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")


def write_report(run: Run, progress: Progress, before: Any, after: Any, seconds: float) -> None:
    """Write manifest, samples, pictures and card of a run that ended."""
    metrics = files.read_metrics(run.folder)
    manifest = make_manifest(run, progress, before, after, seconds)
    write_json(run.folder / files.MANIFEST, manifest)
    write_samples(run.folder / "samples.md", before["prompts"], before["replies"], after["replies"])
    plot_loss(metrics, run.folder / "loss.png", unit_of(run.recipe))
    about = ", which are synthetic" if is_synthetic(run.recipe) else ""
    plot_calibration(manifest["scores"], run.folder / "calibration.png", about)
    write_card(run.folder / "README.md", run.recipe, manifest, metrics, manifest["scores"], run.checks.waived)


def make_manifest(run: Run, progress: Progress, before: Any, after: Any, seconds: float) -> dict[str, Any]:
    """Everything that one must know to do the run again and to believe it."""
    foreseen, model = run.forecast(), run.recipe.model
    cuda = run.device.type == "cuda"
    return {
        "base": {
            "base_model": str(package_folder(model.package)) if model.package else model.base_model,
            "gguf_file": model.gguf_file or None,
            "revision": model.revision,
            "license": model.license,
            "sha256": run.base.content,
        },
        "data": {
            "path": path.name if (path := Path(run.recipe.data.path)).is_file() else run.recipe.data.path,
            "sha256": files.rows_hash(run.data.train, run.data.validation, run.data.test),
            "rows": {n: len(getattr(run.data, n)) for n in ("train", "validation", "test")},
            "left_out": dict(run.data.loaded.left_out)
            | {"longer than max_length": run.data.too_long, "repeated": run.data.examples.repeated},
            "changed": dict(run.data.loaded.changed),
            "noticed": dict(run.data.loaded.noticed),
            "not_used": dict(run.data.loaded.not_used),
            "first": run.data.loaded.first,
            "license": run.recipe.data.license,
        },
        "rendered_with": files.read_json(run.folder / RECORD),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "processes": run.order.processes,
        "seed": run.recipe.args.seed,
        "wall_seconds": seconds,
        "config_hash": run.recipe.config_hash(),
        "trainable_parameters": run.trainable,
        "parameters": run.base.shape.parameters,
        "trainer": run.recipe.args.title,
        "steps": progress.step,
        "fp8_steps": min(run.recipe.fp8_steps(run.order.steps), progress.step),
        "stopped": progress.stopped,
        "tokens": progress.tokens,
        "predicted": {
            "memory_gb": foreseen.memory_gb,
            "tokens_per_s": foreseen.tokens_per_s * run.order.processes,
            "minutes": run.minutes(foreseen.tokens_per_s),
        }
        if foreseen
        else {},
        "actual": {
            "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
            "tokens_per_s": progress.tokens / progress.seconds if progress.seconds else 0.0,
            "minutes": progress.seconds / 60,
        },
        "eval_loss": {
            "base16": before["base16"],
            "start": progress.start_loss,
            "best": progress.best_loss if run.data.validation else None,
            "best_step": progress.best_step,
            "last": progress.last_loss,
        },
        "scores": {"before": before["scores"], "after": after["scores"]},
        "waived": list(run.checks.waived),
    }
