"""One run of a sweep: a fresh adapter on a base that is loaded once."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from pydantic import BaseModel
from transformers import PreTrainedModel

from core.errors import TrainError, TrainingBroke
from core.files import write_json
from train import folder as files
from train.data import prepare
from train.evaluation import Progress
from train.model import Adapted
from train.recipe import Recipe
from train.run import Run
from train.session import Base, Session, device_of
from train.split import Prepared
from train.table import is_file


class Noted(BaseModel):
    """A sweep's inputs.json."""

    rendered: str = ""
    runs: dict[str, files.Inputs] = {}


class Trainer:
    """Keeps base and data from one run to the next, and loads them anew when their settings change.

    What each run was trained on is noted in the sweep's folder, beside its rows; and the time at which the
    first was rendered, which the templates of all runs are told.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: the sweep's. Raises TrainError."""
        self._folder = folder
        noted = files.read_json(folder / files.INPUTS, Noted) or {}
        self._rendered: str = noted.get("rendered", "")
        self._inputs: dict[str, files.Inputs] = noted.get("runs", {})
        self._state = PartialState()
        if self._state.num_processes > 1:
            raise TrainError("a sweep trains on one GPU; start it with python, not with accelerate launch")
        self._kept: dict[str, tuple[Any, Any]] = {}

    def run_cell(self, recipe: Recipe, folder: Path) -> dict[str, float | None]:
        """Train in `folder`, from its checkpoint if there is one; return what a row of the sweep holds."""
        device = device_of(self._state)
        if recipe.fully_shard:
            raise TrainError("a sweep trains on one GPU, which has all of the base; leave fully_shard out")
        base, data, inputs = self._found(recipe)
        stored = [recipe.model, recipe.bnb, recipe.gptq, recipe.args.fp16]
        model: PreTrainedModel = self._keep("model", stored, lambda: base.load(recipe, device))
        run = Run(recipe, folder, base, data, self._state)
        run.check()
        self._inputs[recipe.config_hash()] = inputs
        noted = {"rendered": self._rendered, "runs": self._inputs}
        write_json(self._folder / files.INPUTS, noted)  # first: a run without a note isn't gone on with
        folder.mkdir(parents=True, exist_ok=True)
        adapted = Adapted(model, run.recipe, device)
        try:
            progress = run.train(Session(adapted, base.tokenizer, run.recipe, device), resume=True)
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # of many runs it is a lot
            return measured(progress)
        except TrainingBroke:
            lines = files.read_metrics(folder)
            losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
            steps = [line["step"] for line in lines if "loss" in line]
            start, best = (losses[0], min(losses[1:], default=None)) if losses else (None, None)
            return row(start, best, None, None, True, steps[-1])
        finally:
            adapted.unload()

    def refuse_changed(self, recipes: Iterable[Recipe], measured: Collection[str]) -> None:
        """Raise TrainError if data or base of a run that was begun have other content, or nobody noted it.

        `measured`: the configurations that have a row.
        """
        for recipe in recipes:
            key = recipe.config_hash()
            if key not in measured and not (self._folder / key).exists():
                continue
            begun, now = self._inputs.get(key, {}), self._found(recipe)[2]
            if unknown := [kind for kind in ("data", "base") if kind in now and kind not in begun]:
                raise TrainError(
                    f"{self._folder} holds runs without a record of their {' and '.join(unknown)}, which may "
                    "have been others than are there now. Begin anew: name: NEW in the sweep's file"
                )
            if changed := files.changed_inputs(begun, now, recipe):
                raise TrainError(
                    f"{self._folder} holds runs on other content of the {changed}, and a table of both means "
                    "nothing. Bring back what it was, or begin anew: name: NEW in the sweep's file"
                )

    def _found(self, recipe: Recipe) -> tuple[Base, Prepared, files.Inputs]:
        """Base and data of a run, and what tells them from others of the same names."""
        is_file(recipe.data)  # raises for a missing one, before a base is asked for
        base: Base = self._keep("base", recipe.model, lambda: Base(recipe, self._rendered))
        self._rendered = base.tokenizer.rendered
        sft = recipe.args
        rows = [recipe.model, recipe.data, sft.max_length, sft.assistant_only_loss]
        data: Prepared = self._keep("data", rows, lambda: prepare(recipe, base.tokenizer))
        return base, data, self._keep("inputs", rows, lambda: files.inputs_of(base, data))

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
