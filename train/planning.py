"""`--plan`: what a run will take, printed before anything but the config and the data is fetched."""

from __future__ import annotations

import torch

from train import plan
from train.data import prepare
from train.errors import TrainError
from train.gpus import GPUS, gpu_of
from train.order import Order
from train.recipe import Recipe
from train.run import load_of
from train.session import Base
from train.shape import Load
from train.table import is_file


def print_plan(recipe: Recipe) -> None:
    """Print memory, speed and minutes on each GPU that we have figures for, this machine's first."""
    is_file(recipe.data)  # raises for a missing one, before a base is asked for
    base = Base(recipe)
    try:
        order = Order(prepare(recipe, base.tokenizer).train, recipe.sft)
        load = load_of(order)
        steps = order.steps
        print(f"{len(order.rows):,} rows, {steps:,} steps, {load.tokens:,.0f} tokens a micro-batch")
    except TrainError as error:
        steps, full = 0, recipe.sft.max_length * recipe.sft.per_device_train_batch_size
        load = Load(full, full / 2, full, full / 2, recipe.sft.max_length / 4)
        print(f"note: {error}\nso this is for full blocks, half of whose tokens are trained")
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = [name for name, gpu in GPUS.items() if gpu is gpu_of(here)] or list(GPUS)
    print(f"{'GPU':<8} {'mode':<5} {'memory':>9} {'host':>8} {'tokens/s':>10} {'minutes':>9}")
    waits = False
    for name in known:
        gpu = GPUS[name]
        settled = plan.settle(recipe, base.shape, load, gpu, gpu.memory)
        foreseen = plan.forecast(base.shape, settled, load, gpu)
        tokens = load.tokens * recipe.sft.gradient_accumulation_steps * steps
        minutes = f"{tokens / foreseen.tokens_per_s / 60:,.1f}" if steps else "?"
        memory, host = f"{foreseen.memory_gb:.1f} GB", f"{foreseen.host_gb:.1f} GB"
        speed, mark = f"{foreseen.tokens_per_s:,.0f}", " *" if foreseen.waits else ""
        waits = waits or foreseen.waits
        print(f"{name:<8} {settled.pace:<5} {memory:>9} {host:>8} {speed:>10} {minutes:>9}{mark}")
    if waits:
        print("* so little work that the GPU waits for the processor; more tokens a micro-batch are faster")
    if line := plan.unfused(base.shape, recipe):
        print(line)
    share = foreseen.trainable / base.shape.parameters
    print(f"{foreseen.trainable:,} of {base.shape.parameters:,} parameters are trained ({share:.2%})")
