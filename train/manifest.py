"""What is left of a run for others: the manifest, and the files made of it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from core.rendered_with import RECORD
from train import folder as files
from train import report
from train.base import package_folder
from train.loop import Progress
from train.run import Run

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")


def write_report(run: Run, progress: Progress, before: Any, after: Any, seconds: float) -> None:
    """Write manifest, samples, picture and card of a run that ended."""
    metrics = files.read_metrics(run.folder)
    manifest = make_manifest(run, progress, before, after, seconds)
    files.write_json(run.folder / files.MANIFEST, manifest)
    report.write_samples(run.folder / "samples.md", before["prompts"], before["replies"], after["replies"])
    report.plot_loss(metrics, run.folder / "loss.png")
    report.write_card(
        run.folder / "README.md", run.recipe, manifest, metrics, manifest["scores"], run.checks.waived
    )


def make_manifest(run: Run, progress: Progress, before: Any, after: Any, seconds: float) -> dict[str, Any]:
    """Everything that one must know to do the run again and to believe it."""
    foreseen, model = run.forecast(), run.recipe.model
    speed = progress.tokens / progress.seconds if progress.seconds else 0.0
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
        "seed": run.recipe.sft.seed,
        "wall_seconds": seconds,
        "config_hash": run.recipe.config_hash(),
        "trainable_parameters": run.trainable,
        "parameters": run.base.shape.parameters,
        "steps": progress.step,
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
            "tokens_per_s": speed,
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
