"""One run of a sweep: a fresh adapter on a base that is loaded once."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from train.data import Prepared, prepare
from train.errors import TrainError
from train.folder import read_metrics
from train.loop import Progress
from train.model import Adapted
from train.recipe import Recipe
from train.run import Run
from train.session import Base, Session, device_of


class Trainer:
    """Keeps base and data from one run to the next, and loads them anew when their settings change."""

    def __init__(self) -> None:
        self._state = PartialState()
        if self._state.num_processes > 1:
            raise TrainError("a sweep trains on one GPU; start it with python, not with accelerate launch")
        self._kept: dict[str, tuple[Any, Any]] = {}

    def run_cell(self, recipe: Recipe, folder: Path) -> dict[str, float | None]:
        """Train in `folder`, from its checkpoint if there is one; return what a row of the sweep holds."""
        sft, device = recipe.sft, device_of(self._state)
        base = self._keep("base", recipe.model, lambda: Base(recipe))
        rows = [recipe.model, recipe.data, sft.max_length, sft.assistant_only_loss]
        rows.append(sft.seed if recipe.data.limit else None)
        data: Prepared = self._keep("data", rows, lambda: prepare(recipe, base.tokenizer))
        stored = [recipe.model, recipe.bnb, recipe.gptq, sft.fp16]
        model: PreTrainedModel = self._keep("model", stored, lambda: base.load(recipe, device))
        run = Run(recipe, folder, base, data, self._state)
        run.check()
        folder.mkdir(parents=True, exist_ok=True)
        adapted = Adapted(model, run.recipe, device)
        try:
            progress = run.train(Session(adapted, base.tokenizer, run.recipe, device), resume=True)
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # of many runs it is a lot
            return measured(progress)
        except TrainError:
            losses = [line["eval_loss"] for line in read_metrics(folder) if "eval_loss" in line]
            last = [line for line in read_metrics(folder) if "loss" in line][-1:]
            if all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in last):
                raise  # it wasn't that training broke
            start, best = (losses[0], min(losses[1:], default=None)) if losses else (None, None)
            return row(start, best, None, None, True, last[0]["step"])
        finally:
            adapted.unload()

    def _keep(self, name: str, settings: Any, make: Any) -> Any:
        if name not in self._kept or self._kept[name][0] != settings:
            self._kept.pop(name, None)  # first, or two bases are in memory
            self._kept[name] = (settings, make())
        return self._kept[name][1]


def measured(progress: Progress) -> dict[str, float | None]:
    """What is kept of a run that ended."""
    diverged = progress.stopped.startswith("diverged")
    losses = (progress.start_loss, progress.best_loss, progress.last_loss)
    return row(*losses, progress.grad_norm_max, diverged, progress.step)


def row(
    start: float | None,
    best: float | None,
    last: float | None,
    norm: float | None,
    diverged: bool,
    steps: int,
) -> dict[str, float | None]:
    """The columns of rows.jsonl that were measured; None for what isn't a number, which JSON doesn't know."""
    found = {"start_eval_loss": start, "best_eval_loss": best, "last_eval_loss": last, "grad_norm_max": norm}
    finite = {
        name: value if value is not None and math.isfinite(value) else None for name, value in found.items()
    }
    return finite | {"diverged": diverged, "steps": steps}
