"""One cell of the study: an arm's base in memory, an adapter that is trained on it, and what is measured."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.inference import number, written
from bench.memory import PeakMemory
from core.errors import TrainError
from core.tokenizer import ChatTokenizer
from studies.quantised_tasks import Row, changed_here, judge, load_task, unlike_texts
from train.batches import Order
from train.evaluation import evaluate
from train.examples import Encoded
from train.labels import encode
from train.model import Adapted, load_base
from train.prompt_changes import measure
from train.recipe import Recipe, parse
from train.session import Session
from train.sft import SFTTrainer
from train.sweep_grid import scale

ARMS = ("gptq", "nf4", "int8", "bf16")
QUANTISED: dict[str, dict[str, Any]] = {
    "gptq": {"GPTQConfig": {"bits": 4}},
    "nf4": {"BitsAndBytesConfig": {"load_in_4bit": True}},
    "int8": {"BitsAndBytesConfig": {"load_in_8bit": True}},
    "bf16": {},
}
LONGEST = 512  # tokens of a row
SPIKE, WINDOW = 1.5, 5  # a step's loss above so many times the mean of the steps before it is a spike


@dataclass(frozen=True)
class Sizes:
    """How much of everything: a quick look, or the study."""

    train_rows: int
    test_rows: int
    epochs: int
    batch: int = 8
    rank: int = 8
    alpha: int = 16
    rate: float = 1e-3
    unlike_tokens: int = LONGEST
    new_tokens: int = 64
    repeats: int = 3


@dataclass(frozen=True)
class Job:
    """A cell, as it goes to the process that does it; `what`: untuned, task, alpha, rate or speed."""

    what: str
    arm: str
    base: str  # the arm's own folder
    device: str
    sizes: Sizes
    task: str = "quotes"
    tasks: tuple[str, ...] = ()  # that an untuned base is asked
    seed: int = 0
    alpha: int = 0
    rate: float = 0.0
    batches: tuple[int, ...] = ()  # of chats at once, whose speed is measured


_loaded: dict[str, PreTrainedModel] = {}  # bases by arm


def run_job(job: Job) -> dict[str, Any]:
    """Do a cell; return what results.json keeps of it. Raises TrainError."""
    seeded, device = recipe_of(job), torch.device(job.device)
    if job.what == "speed":
        _loaded.clear()
        model = load_base(job.base, seeded, device)
        return written(model, job.batches, job.sizes.new_tokens, job.sizes.repeats)
    tokenizer, base = ChatTokenizer(job.base), _base(job, seeded)
    adapted = Adapted(base, seeded, device)
    session = Session(adapted, tokenizer, seeded, device)
    try:
        if job.what == "untuned":
            return untuned(session, job)
        found = train(session, job)
        if job.what == "task" and not found["diverged"]:
            found |= robustness(session, job)
        return found
    finally:
        adapted.unload()


def recipe_of(job: Job) -> Recipe:
    """The recipe of a cell, in the product's own words."""
    sizes = job.sizes
    content = {
        "name": "study",
        "model": {"base_model": job.base, "license": "apache-2.0"},
        "data": {"path": "studies/data", "license": "apache-2.0"},
        "LoraConfig": {"r": sizes.rank, "lora_alpha": job.alpha or sizes.alpha},
        "SFTConfig": {
            "max_length": LONGEST,
            "packing": False,
            "per_device_train_batch_size": sizes.batch,
            "num_train_epochs": sizes.epochs,
            "learning_rate": job.rate or sizes.rate,
            "warmup_ratio": 0.1,
            "logging_steps": 1,
            "seed": job.seed,
        },
        "memory": "fast",
    }
    return parse(content | QUANTISED[job.arm], "the study's recipe")


def compensated(sizes: Sizes, alpha: int, job_of: Callable[..., Job]) -> float:
    """The rate at which an adapter of this alpha moves the weights as far as the usual one does."""
    usual, other = recipe_of(job_of()), recipe_of(job_of(alpha=alpha))
    return sizes.rate * scale(usual.lora) / scale(other.lora)


def _base(job: Job, recipe: Recipe) -> PreTrainedModel:
    if job.arm not in _loaded:
        if job.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            if free < total / 4:
                _loaded.clear()  # others need room, too
        _loaded[job.arm] = load_base(job.base, recipe, torch.device(job.device))
    return _loaded[job.arm]


class Watched(SFTTrainer):
    """Tells at each evaluation what the model makes of text that is like none of the tasks."""

    texts: dict[str, list[Encoded]]

    def validated(self, between: Callable[[], None]) -> dict[str, float]:
        """The validation loss, and one for each kind of other text (nats a token)."""
        device = self.args.device
        found = super().validated(between)
        for kind, rows in self.texts.items():
            found[f"eval_{kind}"] = evaluate(self.adapted, rows, self.recipe, device, between)
        return found


def train(session: Session, job: Job) -> dict[str, Any]:
    """Train one adapter on the job's task; return its curves and what became of it."""
    sizes, recipe = job.sizes, session.recipe
    rows = _encoded(session, job.task, "train", sizes.train_rows)
    tests = _encoded(session, job.task, "test", sizes.test_rows)
    lines: list[dict[str, Any]] = []
    began, broke = time.monotonic(), ""
    memory = PeakMemory(job.device == "cuda")
    with tempfile.TemporaryDirectory() as folder:
        order = Order(rows, recipe.sft)
        trainer = Watched(session.adapted, recipe, order, tests, Path(folder), lines.append)
        trainer.texts = _unlike(session, job) if job.what == "task" else {}
        try:
            stopped = trainer.run().stopped
        except TrainError as error:
            last = [line for line in lines if "loss" in line][-1:]
            if last and all(math.isfinite(last[0][name]) for name in ("loss", "grad_norm")):
                raise  # it wasn't that training broke
            stopped, broke = "diverged: no numbers", str(error)
    steps = [line for line in lines if "loss" in line]
    evals = [line for line in lines if "eval_loss" in line]
    return {
        "losses": [number(line["loss"]) for line in steps],
        "grad_norms": [number(line["grad_norm"]) for line in steps],
        "evals": [
            {name[5:]: number(value) for name, value in line.items() if name.startswith("eval_")}
            for line in evals
        ],
        "spikes": spikes([line["loss"] for line in steps]),
        "diverged": stopped.startswith("diverged") or bool(broke),
        "learning_rate": recipe.sft.learning_rate,
        "tokens_per_s": number(statistics.median(line["tokens_per_s"] for line in steps)) if steps else None,
        "memory_gb": number(memory.gb()),
        "seconds": round(time.monotonic() - began, 1),
    }


def spikes(losses: list[float]) -> int:
    """How many steps have a loss above SPIKE times the mean of the WINDOW steps before, or no number."""
    count = 0
    for at in range(WINDOW, len(losses)):
        count += not losses[at] <= SPIKE * statistics.fmean(losses[at - WINDOW : at])
    return count


def _encoded(session: Session, task: str, split: str, limit: int) -> list[Encoded]:
    rows = [row.example() for row in load_task(task, split, limit)]
    return [part for row in rows for part in encode(session.tokenizer, row)]


def _unlike(session: Session, job: Job) -> dict[str, list[Encoded]]:
    return unlike_texts(session.tokenizer, job.sizes.unlike_tokens)


def untuned(session: Session, job: Job) -> dict[str, Any]:
    """What the base is worth at each task, and its losses on other text."""
    rows = {task: load_task(task, "test", job.sizes.test_rows) for task in job.tasks}
    scores = judge(session, [row for each in rows.values() for row in each])
    found = {
        task: {"loss": loss(session, each), "score": number(scores[task])} for task, each in rows.items()
    }
    unlike = {
        kind: number(evaluate(session.adapted, texts, session.recipe, session.device))
        for kind, texts in _unlike(session, job).items()
    }
    return {"tasks": found, "unlike": unlike}


def robustness(session: Session, job: Job) -> dict[str, Any]:
    """Loss and score on the test rows as they are; the loss under each change and on another domain, and how
    often an injected line was obeyed."""
    task, limit = job.task, job.sizes.test_rows
    rows = load_task(task, "test", limit)
    others = changed_here(rows)
    if task == "sentiment":
        others["other domain"] = [row.example() for row in load_task(task, "other", limit)]
    costs = measure(session, [row.example() for row in rows], others)
    return {
        "loss": number(costs.loss),
        "score": number(judge(session, rows)[task]),
        "changed": {change: {"loss": number(loss)} for change, loss in costs.changed.items()},
        "obeyed": number(costs.obeyed),
    }


def loss(session: Session, rows: list[Row]) -> float | None:
    """Nats a trained token."""
    return number(session.loss([row.example() for row in rows]))
