"""A whole run with fully_shard on CPUs, which the command refuses: ROOT RECIPE [--resume], in each process.

One run, as the command's: gloo can't bring processes together a second time over the same store.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from train import folder as files
from train.data import prepare
from train.fine_tune import do
from train.recipe import load_recipe
from train.run import Run
from train.session import Base
from train.stops import interrupt, on_stop


def main(argv: Sequence[str]) -> None:
    """As `train.fine_tune.train_run`, less its refusal of CPUs; says how much of the base a process keeps."""
    torch.set_num_threads(1)  # as a launcher says
    with on_stop(interrupt):
        _run(Path(argv[0]), Path(argv[1]), "--resume" in argv, PartialState(cpu=True))


def _run(root: Path, path: Path, resume: bool, state: PartialState) -> None:
    recipe = load_recipe(path)
    base = Base(recipe)
    run = Run(recipe, root / "outputs" / recipe.name, base, prepare(recipe, base.tokenizer), state)
    run.check()
    kept = whole = 0
    for parameter in run.adapt().adapted.base.parameters():
        here: Any = parameter
        if not here.requires_grad:
            whole += here.nbytes
            kept += here.to_local().nbytes
    run.say(f"{recipe.name} keeps {kept / whole:.3f}")
    with files.claimed(run.folder, recipe, resume, run.inputs()) if run.is_main else nullcontext():
        do(run, resume, time.monotonic())
