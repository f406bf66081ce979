"""One run from recipe to adapter: checks, forecast, scores before, training, scores after, report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from train import checks as check
from train import folder as files
from train import plan
from train.data import Prepared, lost, prepare
from train.errors import TrainError
from train.loop import Loop, Progress, evaluate
from train.model import Adapted, targets, trainable
from train.order import Order
from train.recipe import Recipe
from train.scores.score import score
from train.session import Base, Session, device_of

Say = Callable[[str], None]

SAMPLES = 4  # prompts answered before and after
SAMPLE_TOKENS = 64
SMALL = 1_000_000_000  # parameters; up to here the 16-bit base is measured too, which costs seconds


class Run:
    """What belongs together for one recipe and one folder."""

    def __init__(self, recipe: Recipe, folder: Path, base: Base, data: Prepared, state: PartialState) -> None:
        self.recipe, self.folder, self.base, self.data = recipe, folder, base, data
        self.device = device_of(state)
        self.is_main: bool = state.is_main_process
        self.order = Order(data.train, recipe.sft, state.num_processes, state.process_index)
        self.checks = check.Checks(recipe.waive, self.say)

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.is_main:
            tqdm.write(text)

    def check(self) -> None:
        """Everything that can be known before the weights are there. Raises TrainError."""
        names = (self.data.train, self.data.validation, self.data.test)
        check.check_settings(self.checks, self.recipe, self.base.config.model_type, self.order.steps)
        check.check_targets(self.checks, self.recipe, self.base.shape.linears)
        rows = [row for part in names for row in part]
        check.check_rows(self.checks, rows, self.base.tokenizer, lost(self.data.loaded))
        self.checks.end()

    def forecast(self) -> plan.Plan | None:
        """Memory and speed on this machine's GPU; None where we have no figures for it."""
        gpu = plan.gpu_of(torch.cuda.get_device_name()) if self.device.type == "cuda" else None
        return plan.forecast(self.base.shape, self.recipe, load_of(self.order), gpu) if gpu else None

    def adapt(self) -> Session:
        """Load the base and put a fresh adapter on it."""
        model = self.base.load(self.recipe, self.device)
        adapted = Adapted(model, self.recipe, self.device)
        return Session(adapted, self.base.tokenizer, self.recipe, self.device)

    def check_first_loss(self, session: Session) -> None:
        """The loss of the first batch, before a step. Raises TrainError."""
        batch = self.order.step(0)[0]
        session.adapted.eval()
        with torch.no_grad():
            loss = session.adapted(batch.to(self.device)).item() / max(1, batch.trained)
        check.check_first_loss(self.checks, loss, self.base.shape.vocabulary)
        self.checks.end()

    def ask(self, session: Session) -> dict[str, Any]:
        """Samples and scores of the model as it is now."""
        examples = self.data.examples
        chats = [e.messages[:-1] for e in (examples.test or examples.validation) if e.messages][:SAMPLES]
        return {
            "prompts": chats,
            "replies": session.answer(chats, SAMPLE_TOKENS) if chats else [],
            "scores": score(self.recipe.data.task, session, examples.test, examples.train),
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
        foreseen = plan.flops_per_token(self.base.shape, load_of(self.order), self.trainable)
        gpu = plan.gpu_of(torch.cuda.get_device_name()) if self.device.type == "cuda" else None

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

        loop = Loop(session.adapted, self.recipe, self.order, self.data.validation, self.folder, note)
        if resume:
            loop.resume()
            files.keep_metrics_until(self.folder, loop.progress.step)
        bar.update(loop.progress.step)
        try:
            return loop.run()
        except torch.OutOfMemoryError:
            raise TrainError(self._too_large()) from None
        finally:
            bar.close()

    @property
    def trainable(self) -> int:
        """Parameters of the adapter."""
        names, _ = targets(self.recipe.lora.target_modules, self.base.shape.linears)
        return trainable(self.recipe.lora, self.base.shape.linears, names)

    def minutes(self, tokens_per_s: float) -> float:
        """Minutes of all steps at this speed of one GPU."""
        tokens = load_of(self.order).tokens * self.recipe.sft.gradient_accumulation_steps * self.order.steps
        return tokens / tokens_per_s / 60

    def _too_large(self) -> str:
        sft = self.recipe.sft
        cures = []
        if sft.gradient_checkpointing != "full":
            cures.append("gradient_checkpointing: full")
        if sft.per_device_train_batch_size > 1:
            half = sft.per_device_train_batch_size // 2
            twice = 2 * sft.gradient_accumulation_steps
            cures.append(f"per_device_train_batch_size: {half} with gradient_accumulation_steps: {twice}")
        cures.append(f"max_length: {sft.max_length // 2}")
        return f"the GPU's memory is too small for a step; in SFTConfig, try {', then '.join(cures)}"


def load_of(order: Order) -> plan.Load:
    """What an average micro-batch of this data holds."""
    rows = order.rows
    lengths = [len(row.ids) for row in rows]
    tokens = sum(lengths)
    batches = math.ceil(len(order.blocks) / order.sft.per_device_train_batch_size)
    trained = sum(sum(row.mask[1:]) for row in rows)
    return plan.Load(tokens / batches, trained / batches, sum(n * n for n in lengths) / tokens)


def train_run(recipe: Recipe, outputs: Path, resume: bool, say: Say = print) -> Path:
    """Do the whole run in `outputs`/<name>; return the folder. Raises TrainError, or KeyboardInterrupt."""
    began = time.monotonic()
    state = PartialState()
    base = Base(recipe)
    data = prepare(recipe, base.tokenizer)
    run = Run(recipe, outputs / recipe.name, base, data, state)
    run.check()
    describe(run)
    with files.claimed(run.folder, recipe, resume):
        files.write_prompts(run.folder, data.train, data.test)
        before = files.read_json(run.folder / files.BEFORE)
        base16 = run.base16_loss() if before is None else before["base16"]
        session = run.adapt()
        if before is None:
            run.check_first_loss(session)
            before = run.ask(session) | {"base16": base16}
            files.write_json(run.folder / files.BEFORE, before)
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        progress = run.train(session, resume)
        session.load_adapter(run.folder / "adapter")
        after = run.ask(session)
        if run.is_main:
            from train.manifest import write_report

            write_report(run, progress, before, after, time.monotonic() - began)
    return run.folder


def describe(run: Run) -> None:
    """Print what is about to be trained, and the forecast."""
    names, _ = targets(run.recipe.lora.target_modules, run.base.shape.linears)
    for layer in run.base.shape.linears:
        mark = "adapter" if layer.name in names else "frozen"
        run.say(
            f"  {layer.name:<14} {layer.out_features:>6} x {layer.in_features:<6} x {layer.count:<3} {mark}"
        )
    parameters = run.base.shape.parameters
    run.say(f"{run.trainable:,} of {parameters:,} parameters are trained ({run.trainable / parameters:.2%})")
    data, order = run.data, run.order
    run.say(
        f"{len(data.train):,} rows to train on, {len(data.validation):,} to validate, {len(data.test):,} to "
        f"test; {order.steps:,} steps, {order.steps_per_epoch:,} an epoch"
    )
    if foreseen := run.forecast():
        run.say(
            f"forecast: {foreseen.memory_gb:.1f} GB, {foreseen.tokens_per_s:,.0f} tokens/s, "
            f"{run.minutes(foreseen.tokens_per_s):.0f} minutes"
        )
