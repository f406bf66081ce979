"""A whole run, from the recipe to the report."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError

from core.command import ROOT
from core.errors import TrainError
from core.files import write_json
from train import data_report, forecast, sharding
from train import folder as files
from train.card import form
from train.data import load_file, prepare
from train.earlier import with_earlier
from train.finished import reopen
from train.fused.supports import fp8_obstacle
from train.layers import adapted_layers
from train.recipe import LAST_IN_16_BIT, Recipe
from train.run import Run, load_of, order_of
from train.session import Base, Session, device_of
from train.shape import GPUS, Load, gpu_of
from train.table import is_file


def train_run(recipe: Recipe, outputs: Path, resume: bool) -> Path:
    """Do the whole run in `outputs`/<name>; return the folder. Raises TrainError, or KeyboardInterrupt."""
    began = time.monotonic()
    recipe = with_earlier(recipe, outputs)
    state = PartialState(cpu=not torch.cuda.is_available())  # or processes without a GPU ignore each other
    sharding.check(recipe, device_of(state), state.num_processes)
    with state.main_process_first():  # it writes what the others then find: the base, the encoded rows
        loaded = load_file(recipe)
        base = Base(recipe, files.rendered_at(outputs / recipe.name) if resume else "")
        if why := fp8_obstacle(recipe, base.shape.obstacle, base.shape.linears, device_of(state)):
            raise TrainError(why)
        data = prepare(recipe, base.tokenizer, loaded)
    run = Run(recipe, outputs / recipe.name, base, data, state)
    run.say(data_report.rows(recipe.data, data.loaded))
    for line in [*data_report.notes(recipe, data), *data.examples.notes]:
        run.say(line)
    run.check()
    describe(run)
    try:
        with files.claimed(run.folder, recipe, resume, run.inputs()) if run.is_main else nullcontext():
            do(run, resume, began)
    except KeyboardInterrupt:
        run.leave()
        raise
    except torch.OutOfMemoryError:
        raise TrainError(run.too_large()) from None
    except (OSError, SafetensorError) as error:
        raise files.disk_error(error, run.folder) or error from None
    return run.folder


def do(run: Run, resume: bool, began: float) -> None:
    """Train, and write the report. Raises TrainError."""
    session, before = start(run)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    progress = run.train(session, resume)
    if not run.recipe.fully_shard:
        run.leave()
    if progress.stopped:
        run.say(f"stopped at step {progress.step}: {progress.stopped}")
    if progress.start_loss and not progress.best_loss < progress.start_loss:
        learning_rate = f"learning_rate ({run.recipe.args.learning_rate:g})"
        if progress.stopped.startswith("diverged"):
            raise TrainError(
                f"training broke, and no adapter of it is better than none. Lower {learning_rate}, and name "
                "the new run: --name"
            )
        run.say(
            f"note: the validation loss was {progress.start_loss:.3f} before and is {progress.best_loss:.3f} "
            f"at best: this adapter is no better than none. Train longer, or change {learning_rate}"
        )
    if run.answers:
        run.wait()  # for the adapter to be written
        session.load_adapter(run.folder / "adapter")
        after = run.ask(session, before)
    run.leave()
    if run.is_main:
        from train.report import write_report

        write_report(run, progress, before, after, time.monotonic() - began)


def start(run: Run) -> tuple[Session, dict[str, Any]]:
    """The model with a fresh adapter; and, of those that answer, what it answers: kept for a --resume."""
    if not run.answers:
        return run.adapt(), {}
    before: dict[str, Any] | None = None
    base16 = None
    if run.is_main:
        tokenizer = run.base.tokenizer
        rendered = tokenizer.rendered_with, tokenizer.rendered
        files.write_prompts(run.folder, run.data.train, run.data.test, *rendered)
        before = files.read_json(run.folder / files.BEFORE, files.Asked)
        base16 = run.base16_loss() if before is None else None
    (before,) = run.agreed(before)
    session = run.adapt()
    if before is None:
        run.check_first_loss(session)
        before = run.ask(session) | {"base16": base16}
        if run.is_main:
            write_json(run.folder / files.BEFORE, before)
    return session, before


def describe(run: Run) -> None:
    """Print what is about to be trained, and the forecast."""
    shape, data, order = run.base.shape, run.data, run.order
    reached = {
        (layer.name, layer.out_features): layer.count
        for layer in adapted_layers(run.recipe.lora, shape.linears)
    }
    for layer in shape.linears:
        on = reached.get((layer.name, layer.out_features), 0)
        size = f"{layer.out_features:>6} x {layer.in_features:<6} x {layer.count:<3}"
        run.say(f"  {layer.name:<14} {size} {_on(on, layer.count)}")
    if run.recipe.model.adapter:
        run.say(f"goes on from {run.recipe.model.adapter} ({form(run.recipe.lora)})")
    trained, parameters = run.trainable, shape.parameters
    run.say(f"{trained:,} of {parameters:,} parameters are trained ({trained / parameters:.2%})")
    run.say(
        f"{len(data.train):,} rows to train on, {len(data.validation):,} to validate, {len(data.test):,} to "
        f"test; {order.steps:,} steps, {order.steps_per_epoch:,} an epoch"
    )
    if line := forecast.unfused(shape, run.recipe, run.device):
        run.say(line)
    if run.recipe.precision == "fp8":
        run.say(f"in FP8: the first {run.recipe.fp8_steps(order.steps):,} steps; then in 16 bit")
    if foreseen := run.forecast():
        host = f" and {foreseen.host_gb:.1f} GB of the computer's" if foreseen.host_gb else ""
        run.say(
            f"forecast: {foreseen.memory_gb:.1f} GB{host} ({run.recipe.pace}), {foreseen.tokens_per_s:,.0f} "
            f"tokens/s, {run.minutes(foreseen.tokens_per_s):.0f} minutes"
        )


def _on(adapters: int, layers: int) -> str:
    """Whether layers of a name have adapters, all or some."""
    return "adapter" if adapters == layers else f"adapter on {adapters}" if adapters else "frozen"


def print_plan(recipe: Recipe, outputs: Path = ROOT / "outputs") -> None:
    """Print memory, speed and minutes on each GPU that we have figures for, this machine's first."""
    recipe = with_earlier(recipe, outputs)
    is_file(recipe.data)  # raises for a missing one, before a base is asked for
    base = Base(recipe)
    cards = max(2, torch.cuda.device_count()) if recipe.fully_shard else 1
    try:
        order = order_of(prepare(recipe, base.tokenizer).train, recipe, cards)
        load = load_of(order)
        steps = order.steps
        print(f"{len(order.rows):,} rows, {steps:,} steps, {load.tokens:,.0f} tokens a micro-batch")
    except TrainError as error:
        steps, full = 0, recipe.args.max_length * recipe.args.per_device_train_batch_size
        load = Load(full, full / 2, full, full / 2, recipe.args.max_length / 4)
        print(f"note: {error}\nso this is for full blocks, half of whose tokens are trained")
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = [name for name, gpu in GPUS.items() if gpu is gpu_of(here)] or list(GPUS)
    print(f"{'GPU':<8} {'mode':<5} {'memory':>9} {'host':>8} {'tokens/s':>10} {'minutes':>9}")
    waits = False
    for name in known:
        gpu = GPUS[name]
        settled = forecast.settle(recipe, base.shape, load, gpu, gpu.memory, cards)
        foreseen = forecast.forecast(base.shape, settled, load, gpu, cards)
        tokens = load.tokens * recipe.args.gradient_accumulation_steps * steps
        minutes = f"{tokens / foreseen.tokens_per_s / 60:,.1f}" if steps else "?"
        memory, host = f"{foreseen.memory_gb:.1f} GB", f"{foreseen.host_gb:.1f} GB"
        speed, mark = f"{foreseen.tokens_per_s:,.0f}", " *" if foreseen.waits else ""
        waits = waits or foreseen.waits
        print(f"{name:<8} {settled.pace:<5} {memory:>9} {host:>8} {speed:>10} {minutes:>9}{mark}")
    if waits:
        print("* so little work that the GPU waits for the processor; more tokens a micro-batch are faster")
    if cards > 1:
        print(
            f"each of {cards} GPUs that share the base out takes that memory and does that many tokens/s; "
            "host is the computer's memory for all of them, while the base is loaded"
        )
    if line := forecast.unfused(base.shape, recipe):
        print(line)
    if recipe.precision == "fp8":
        print("note: FP8 was measured on an H100; GPUs without it, as the A100 and older, refuse this recipe")
        print(f"the last {LAST_IN_16_BIT:.0%} of the steps are in 16 bit, and the forecast is of them all")
    if recipe.dpo:
        print("note: the forecast was fitted to training on answers; for preferences it wasn't measured")
    share = foreseen.trainable / base.shape.parameters
    print(f"{foreseen.trainable:,} of {base.shape.parameters:,} parameters are trained ({share:.2%})")


MAX_NEW_TOKENS = 256


def answer(folder: Path, prompt: str | None) -> str:
    """The adapter's greedy reply. Raises TrainError."""
    recipe, base = reopen(folder)
    before = files.read_json(folder / files.BEFORE, files.Asked) or {}
    chats = before.get("prompts") or [[{"role": "user", "content": "Hello!"}]]
    chat = [{"role": "user", "content": prompt}] if prompt else chats[0]
    session = base.adapted(recipe, device_of(PartialState()))
    session.load_adapter(folder / "adapter")
    asked = "" if prompt else f"> {chat[-1]['content']}\n"
    return asked + session.answer([chat], MAX_NEW_TOKENS)[0]
