"""Train one adapter for a few steps in a temporary folder: what its curves were, and what it took."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.cells import number
from bench.memory import PeakMemory
from core.errors import TrainingBroke
from core.tokenizer import ChatTokenizer
from train.batches import Order
from train.examples import Encoded
from train.model import Adapted, load_base
from train.recipe import Recipe
from train.session import Session
from train.sft import SFTTrainer

SPIKE, WINDOW = 1.5, 5  # a step's loss above so many times the mean of the steps before it is a spike
WARM = 4  # steps whose speed isn't counted: kernels are chosen and memory is taken


@dataclass(frozen=True)
class ShortRun:
    """What a run told of its `steps` and `evaluations`, as lines of metrics.jsonl."""

    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    diverged: bool  # training made the model much worse, or broke
    memory_gb: float | None  # at the peak, of 10^9 bytes
    seconds: float

    def tokens_per_s(self, warm: int = 0) -> float | None:
        """The median over the steps after the first `warm` ones."""
        speeds = [step["tokens_per_s"] for step in self.steps[warm:]]
        return statistics.median(speeds) if speeds else None

    def figures(self) -> dict[str, Any]:
        """All of it as JSON has it; a loss that is no number is None."""
        return {
            "losses": [number(step["loss"]) for step in self.steps],
            "grad_norms": [number(step["grad_norm"]) for step in self.steps],
            "evals": [
                {name[5:]: number(value) for name, value in line.items() if name.startswith("eval_")}
                for line in self.evaluations
            ],
            "spikes": spikes([step["loss"] for step in self.steps]),
            "diverged": self.diverged,
            "tokens_per_s": number(self.tokens_per_s()),
            "memory_gb": number(self.memory_gb),
            "seconds": round(self.seconds, 1),
        }


def short_run(
    adapted: Adapted,
    recipe: Recipe,
    order: Order,
    validation: Sequence[Encoded] = (),
    others: Mapping[str, Sequence[Encoded]] = MappingProxyType({}),
    fp8_steps: int | None = None,
    best: bool = False,
    may_break: bool = False,
) -> ShortRun:
    """Train. `others` are rows whose losses are told with each evaluation's, by their names; `fp8_steps` are
    others than the recipe's; `best` gives the adapter the weights that it was evaluated best with. Raises
    TrainError; where it `may_break`, a loss that is no number is a result.
    """
    lines: list[dict[str, Any]] = []
    device = next(iter(adapted.parameters_to_train())).device
    memory, began = PeakMemory(device.type == "cuda"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(adapted, recipe, order, validation, Path(folder), lines.append)
        trainer.others = others
        trainer.fp8_steps = trainer.fp8_steps if fp8_steps is None else fp8_steps
        try:
            diverged = trainer.run().stopped.startswith("diverged")
        except TrainingBroke:
            if not may_break:
                raise
            diverged = True
        if best:
            adapted.load(Path(folder, "adapter"))
    steps, evaluations = ([line for line in lines if name in line] for name in ("loss", "eval_loss"))
    return ShortRun(steps, evaluations, diverged, memory.gb(), time.monotonic() - began)


def spikes(losses: Sequence[float]) -> int:
    """How many steps have a loss above SPIKE times the mean of the WINDOW steps before, or no number."""
    return sum(
        not losses[at] <= SPIKE * statistics.fmean(losses[at - WINDOW : at])
        for at in range(WINDOW, len(losses))
    )


_loaded: dict[str, PreTrainedModel] = {}  # by folder and by how it is stored


@contextmanager
def fresh_adapter(recipe: Recipe, device: torch.device) -> Iterator[Session]:
    """A new adapter on the recipe's base, which is a folder; the base stays for others. Raises TrainError."""
    folder = recipe.model.base_model
    key = repr((folder, recipe.bnb, recipe.gptq, device))
    if key not in _loaded:
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            if free < total / 4:
                forget_bases()  # others need room, too
        _loaded[key] = load_base(folder, recipe, device)
    adapted = Adapted(_loaded[key], recipe, device)
    try:
        yield Session(adapted, ChatTokenizer(folder), recipe, device)
    finally:
        adapted.unload()


def forget_bases() -> None:
    """Give back what `fresh_adapter` keeps: it would count in what is measured next."""
    _loaded.clear()
