"""Train a recipe on chosen examples and ask what came of it: what train/qlora.py does, without its report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from bench.memory import PeakMemory
from train import folder as files
from train.data import encode_splits
from train.examples import Example, Loaded
from train.recipe import Recipe
from train.run import Run
from train.session import Base, Session
from train.split import Splits


@contextmanager
def tuned(recipe: Recipe, folder: Path, train: list[Example]) -> Iterator[tuple[Session, dict[str, Any]]]:
    """Train on these in `folder`, going on from what is there; give the session, and what the training told.

    That is `loss` of each line of the log (nats a token), `steps`, `tokens`, `tokens_per_s` and `memory_gb`
    at the peak (10^9 bytes), None where it isn't known. The folder goes when the block ends, and stays where
    it or the training doesn't come to its end. Raises TrainError.
    """
    base, cuda = Base(recipe), torch.cuda.is_available()
    loaded = Loaded(train, len(train), layout=recipe.data.task)
    data = encode_splits(recipe, base.tokenizer, loaded, Splits(train))
    run = Run(recipe, folder, base, data, PartialState(cpu=not cuda))
    run.check()
    folder.mkdir(parents=True, exist_ok=True)
    memory = PeakMemory(cuda)
    session = run.adapt()
    progress = run.train(session, resume=True)
    told = {
        "loss": [line["loss"] for line in files.read_metrics(folder) if "loss" in line],
        "steps": progress.step,
        "tokens": progress.tokens,
        "tokens_per_s": progress.tokens / progress.seconds if progress.seconds else None,
        "memory_gb": memory.gb(),
    }
    yield session, told
    shutil.rmtree(folder)
