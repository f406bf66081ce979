"""One run from recipe to adapter: checks, forecast, scores before, training, scores after, report."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from tqdm import tqdm

from train import checks as check
from train import data_report, plan
from train import folder as files
from train.data import Prepared, load_file, lost, prepare
from train.errors import TrainError
from train.example import Encoded
from train.first_loss import check_reading
from train.gpus import Gpu, gpu_of
from train.loop import Loop, Progress, evaluate
from train.model import Adapted, targets, trainable
from train.order import Order
from train.recipe import Recipe
from train.scores.score import score
from train.session import Base, Session, device_of
from train.shape import Load
from train.trackers import trackers

SAMPLES = 4  # prompts answered before and after
LOOKED_AT = 1000  # steps
SAMPLE_TOKENS = 64
SMALL = 1_000_000_000  # parameters; up to here the 16-bit base is measured too, which costs seconds


class Run:
    """What belongs together for one recipe and one folder."""

    def __init__(self, recipe: Recipe, folder: Path, base: Base, data: Prepared, state: PartialState) -> None:
        self.folder, self.base, self.data = folder, base, data
        self.device = device_of(state)
        self.is_main: bool = state.is_main_process
        self.order = Order(data.train, recipe.sft, state.num_processes, state.process_index)
        self.checks = check.Checks(recipe.waive, self.say)
        self.recipe = self._settled(recipe)

    def _settled(self, recipe: Recipe) -> Recipe:
        """The recipe with its `memory` decided for this machine."""
        if self.device.type != "cuda":
            return recipe
        free, _ = torch.cuda.mem_get_info(self.device)
        available = free + torch.cuda.memory_reserved(self.device)  # a sweep's base is there already
        return plan.settle(recipe, self.base.shape, self.load, self.gpu, available)

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.is_main:
            tqdm.write(text)

    def check(self) -> None:
        """Everything that can be known before the weights are there. Raises TrainError."""
        self.base.check_device(self.device)
        names = (self.data.train, self.data.validation, self.data.test)
        check.check_settings(self.checks, self.recipe, self.base.config.model_type, self.order.steps)
        check.check_targets(self.checks, self.recipe, self.base.shape.linears)
        rows = [row for part in names for row in part]
        check.check_rows(self.checks, rows, self.base.tokenizer, lost(self.data.loaded), self._prose)
        check.check_left_out(self.checks, self.data, self.recipe.sft.max_length)
        check.check_context(self.checks, rows, self.base.config)
        self.checks.end()

    @property
    def _prose(self) -> bool:
        """Whether the data are texts that go on, and not the seeds' way to write a chat."""
        return self.data.loaded.layout == "text" and self.recipe.data.format == "chat"

    def inputs(self) -> files.Inputs:
        """The hashes of what is trained on, and by which a run that goes on knows it."""
        return files.inputs_of(self.base, self.data)

    def forecast(self) -> plan.Plan | None:
        """Memory and speed on this machine's GPU; None where we have no figures for it."""
        return plan.forecast(self.base.shape, self.recipe, self.load, self.gpu) if self.gpu else None

    @cached_property
    def gpu(self) -> Gpu | None:
        """The figures of this machine's GPU, where we have some."""
        return gpu_of(torch.cuda.get_device_name()) if self.device.type == "cuda" else None

    @cached_property
    def load(self) -> Load:
        """What the micro-batches hold."""
        return load_of(self.order)

    def adapt(self) -> Session:
        """Load the base and put a fresh adapter on it."""
        model = self.base.load(self.recipe, self.device)
        adapted = Adapted(model, self.recipe, self.device)
        return Session(adapted, self.base.tokenizer, self.recipe, self.device)

    def check_first_loss(self, session: Session) -> None:
        """Whether the base reads the rows at all, before a step. Raises TrainError."""

        def loss(rows: list[Encoded]) -> float:
            return evaluate(session.adapted, rows, self.recipe, self.device)

        tokenizer = self.base.tokenizer
        bos = None if tokenizer.bos_id in tokenizer.stop_ids else tokenizer.bos_id
        check_reading(self.checks, self.data.train, bos, loss)
        self.checks.end()

    def ask(self, session: Session) -> dict[str, Any]:
        """Samples and scores of the model as it is now."""
        examples = self.data.examples
        asked = examples.test or examples.validation or examples.train
        chats = [e.messages[:-1] for e in asked if e.messages][:SAMPLES]
        return {
            "prompts": chats,
            "replies": session.answer(chats, SAMPLE_TOKENS) if chats else [],
            "scores": score(self.data.loaded.layout, session, examples.test, examples.train),
        }

    def base16_loss(self) -> float | None:
        """Validation loss of the base in 16 bit, where the base is small and was quantised."""
        if self.recipe.bnb is None or self.base.shape.parameters > SMALL or not self.data.validation:
            return None
        recipe = self.recipe.model_copy(update={"bnb": None})
        adapted = Adapted(self.base.load(recipe, self.device), recipe, self.device)
        return evaluate(adapted, self.data.validation, recipe, self.device)

    def train(self, session: Session, resume: bool) -> Progress:
        """Train, with a bar and metrics.jsonl."""
        bar = tqdm(total=self.order.steps, desc="Training", unit="step", disable=not self.is_main)
        foreseen = plan.flops_per_token(self.base.shape, self.load, self.trainable)
        gpu = self.gpu
        watching = trackers(self.recipe.sft.report_to, self.folder) if self.is_main else []

        def note(line: dict[str, Any]) -> None:
            if not self.is_main:
                return
            if "loss" in line:
                share = line["tokens_per_s"] * foreseen / gpu.peak / self.order.processes if gpu else None
                line["mfu"] = share
                shown = {"loss": f"{line['loss']:.3f}", "tok/s": f"{line['tokens_per_s']:,.0f}"}
                if gpu:
                    shown |= {"mfu": f"{share:.0%}", "GB": f"{line['memory_gb']:.1f}"}
                bar.set_postfix(shown, refresh=False)
                bar.update(line["step"] - bar.n)
            else:
                tqdm.write(f"step {line['step']}: validation loss {line['eval_loss']:.4f}")
            files.append_metrics(self.folder, line)
            for track in watching:
                track(line)

        loop = Loop(session.adapted, self.recipe, self.order, self.data.validation, self.folder, note)
        if resume:
            loop.resume()
            if self.is_main:
                files.keep_metrics_until(self.folder, loop.progress.step or -1)
        bar.update(loop.progress.step)
        try:
            return loop.run()
        finally:
            bar.close()

    @property
    def trainable(self) -> int:
        """Parameters of the adapter."""
        names, _ = targets(self.recipe.lora.target_modules, self.base.shape.linears)
        return trainable(self.recipe.lora, self.base.shape.linears, names)

    def minutes(self, tokens_per_s: float) -> float:
        """Minutes of all steps at this speed of one GPU."""
        tokens = self.load.tokens * self.recipe.sft.gradient_accumulation_steps * self.order.steps
        return tokens / tokens_per_s / 60

    def too_large(self) -> str:
        """What to do when the memory wasn't enough."""
        sft = self.recipe.sft
        cures = []
        if self.recipe.fast:
            cures.append("memory: lean (beside SFTConfig)")
        if sft.per_device_train_batch_size > 1:
            half = sft.per_device_train_batch_size // 2
            twice = 2 * sft.gradient_accumulation_steps
            cures.append(f"per_device_train_batch_size: {half} with gradient_accumulation_steps: {twice}")
        cures.append(f"max_length: {sft.max_length // 2}")
        return f"the GPU's memory is too small for a step; in SFTConfig, try {', then '.join(cures)}"


def load_of(order: Order) -> Load:
    """What the micro-batches of a run hold; of a long run, its first steps."""
    lengths = [len(row.ids) for row in order.rows]
    trained = [sum(row.mask[1:]) for row in order.rows]
    batches = [rows for step in range(min(order.steps, LOOKED_AT)) for rows in order.micro_batches(step)]
    tokens = [sum(lengths[row] for row in rows) for rows in batches]
    counted = [sum(trained[row] for row in rows) for rows in batches]
    return Load(
        tokens=sum(tokens) / len(batches),
        trained=sum(counted) / len(batches),
        most_tokens=max(tokens),
        most_trained=max(counted),
        longest=sum(n * n for n in lengths) / sum(lengths),
    )


def train_run(recipe: Recipe, outputs: Path, resume: bool) -> Path:
    """Do the whole run in `outputs`/<name>; return the folder. Raises TrainError, or KeyboardInterrupt."""
    began = time.monotonic()
    state = PartialState(cpu=not torch.cuda.is_available())  # or processes without a GPU ignore each other
    with state.main_process_first():  # it writes what the others then find: the base, the encoded rows
        loaded = load_file(recipe.data)
        base = Base(recipe, files.rendered_at(outputs / recipe.name) if resume else "")
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
    if progress.stopped:
        run.say(f"stopped at step {progress.step}: {progress.stopped}")
    if progress.start_loss and not progress.best_loss < progress.start_loss:
        learning_rate = f"learning_rate ({run.recipe.sft.learning_rate:g})"
        if progress.stopped.startswith("diverged"):
            raise TrainError(
                f"training broke, and no adapter of it is better than none. Lower {learning_rate}, and name "
                "the new run: --name"
            )
        run.say(
            f"note: the validation loss was {progress.start_loss:.3f} before and is {progress.best_loss:.3f} "
            f"at best: this adapter is no better than none. Train longer, or change {learning_rate}"
        )
    if run.is_main:
        from train.manifest import write_report

        session.load_adapter(run.folder / "adapter")
        write_report(run, progress, before, run.ask(session), time.monotonic() - began)


def start(run: Run) -> tuple[Session, dict[str, Any]]:
    """The model with a fresh adapter; and, of the first process, what it answers: kept for a --resume."""
    if not run.is_main:
        return run.adapt(), {}
    tokenizer = run.base.tokenizer
    rendered = tokenizer.rendered_with, tokenizer.rendered
    files.write_prompts(run.folder, run.data.train, run.data.test, *rendered)
    before: dict[str, Any] | None = files.read_json(run.folder / files.BEFORE)
    base16 = run.base16_loss() if before is None else None
    session = run.adapt()
    if before is None:
        run.check_first_loss(session)
        before = run.ask(session) | {"base16": base16}
        files.write_json(run.folder / files.BEFORE, before)
    return session, before


def describe(run: Run) -> None:
    """Print what is about to be trained, and the forecast."""
    shape, data, order = run.base.shape, run.data, run.order
    names, _ = targets(run.recipe.lora.target_modules, shape.linears)
    for layer in shape.linears:
        size = f"{layer.out_features:>6} x {layer.in_features:<6} x {layer.count:<3}"
        run.say(f"  {layer.name:<14} {size} {'adapter' if layer.name in names else 'frozen'}")
    trained, parameters = run.trainable, shape.parameters
    run.say(f"{trained:,} of {parameters:,} parameters are trained ({trained / parameters:.2%})")
    run.say(
        f"{len(data.train):,} rows to train on, {len(data.validation):,} to validate, {len(data.test):,} to "
        f"test; {order.steps:,} steps, {order.steps_per_epoch:,} an epoch"
    )
    if line := plan.unfused(shape, run.recipe, run.device):
        run.say(line)
    if foreseen := run.forecast():
        host = f" and {foreseen.host_gb:.1f} GB of the computer's" if foreseen.host_gb else ""
        run.say(
            f"forecast: {foreseen.memory_gb:.1f} GB{host} ({run.recipe.pace}), {foreseen.tokens_per_s:,.0f} "
            f"tokens/s, {run.minutes(foreseen.tokens_per_s):.0f} minutes"
        )
