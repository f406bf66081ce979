"""The parts of one run, which `train.fine_tune` puts in order: checks, forecast, adapter, scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from train import checks as check
from train import folder as files
from train import forecast
from train.arguments import check_arguments
from train.batches import Order
from train.checks import check_reading
from train.data import lost
from train.dpo import DPOTrainer
from train.earlier import check_base, check_form, content_of
from train.evaluation import Progress, a_number, evaluate
from train.examples import Encoded, Example, sides
from train.layers import trainable
from train.model import Adapted
from train.pair_batches import PairOrder
from train.preference_scores import margins, preference_scores
from train.recipe import Recipe
from train.session import Base, Session, device_of
from train.sft import SFTTrainer
from train.shape import Gpu, Load, gpu_of
from train.split import Prepared
from train.tasks import code_instructions, quotes, sms
from train.tasks.scored import Scored

SAMPLES = 4  # prompts answered before and after
LOOKED_AT = 1000  # steps
SAMPLE_TOKENS = 64
SMALL = 1_000_000_000  # parameters; up to here the 16-bit base is measured too, which costs seconds


class Run:
    """What belongs together for one recipe and one folder."""

    def __init__(self, recipe: Recipe, folder: Path, base: Base, data: Prepared, state: PartialState) -> None:
        self.folder, self.base, self.data, self._state = folder, base, data, state
        self.device = device_of(state)
        self.is_main: bool = state.is_main_process
        self.answers = self.is_main or recipe.fully_shard  # with a base that is shared out, all at once
        self.order = order_of(data.train, recipe, state.num_processes, state.process_index)
        self.checks = check.Checks(recipe.waive, self.say)
        self.recipe = self._settled(recipe)

    def _settled(self, recipe: Recipe) -> Recipe:
        """The recipe with its `memory` decided for this machine."""
        if self.device.type != "cuda":
            return recipe
        free, _ = torch.cuda.mem_get_info(self.device)
        available = free + torch.cuda.memory_reserved(self.device)  # a sweep's base is there already
        return forecast.settle(recipe, self.base.shape, self.load, self.gpu, available, self.order.processes)

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.is_main:
            tqdm.write(text)

    def agreed(self, *found: Any) -> list[Any]:
        """What the first process found, where several answer together."""
        shared = list(found)
        if self.recipe.fully_shard:
            torch.distributed.broadcast_object_list(shared, 0)
        return shared

    def wait(self) -> None:
        """Until all that answer are here."""
        if self.recipe.fully_shard:
            torch.distributed.barrier()

    def leave(self) -> None:
        """Close what is between the processes, or NCCL complains at the end; nobody waits any more.

        All do it at about the same time: for NCCL it is one more thing that is done together.
        """
        self._state.destroy_process_group()

    def check(self) -> None:
        """Everything that can be known before the weights are there. Raises TrainError."""
        self.base.check_device(self.device)
        check_base(self.recipe, self.base.content, self.base.folder)
        if adapter := self.recipe.model.adapter:
            check_form(Path(adapter), self.recipe.lora, self.base)
        names = (self.data.train, self.data.validation, self.data.test)
        check.check_settings(self.checks, self.recipe, self.base.config.model_type, self.order.steps)
        check.check_targets(self.checks, self.recipe, self.base.shape.linears, self.base.shape.beside)
        check_arguments(self.recipe, self.order.steps, self.folder, self.device)
        rows = sides(row for part in names for row in part)
        check.check_rows(self.checks, rows, self.base.tokenizer, lost(self.data.loaded), self._prose)
        key = f"{self.recipe.args.title}.max_length"
        check.check_left_out(self.checks, self.data, self.recipe.args.max_length, key)
        check.check_context(self.checks, rows, self.base.config, key)
        self.checks.end()

    @property
    def _prose(self) -> bool:
        """Whether the data are texts that go on, and not a chat written as one text."""
        return self.data.loaded.layout == "text" and self.recipe.data.format == "chat"

    def inputs(self) -> files.Inputs:
        """The hashes of what is trained on, and by which a run that goes on knows it."""
        return files.inputs_of(self.base, self.data) | content_of(self.recipe)

    def forecast(self) -> forecast.Plan | None:
        """Memory and speed on this machine's GPU; None where we have no figures for it."""
        if self.gpu is None:
            return None
        return forecast.forecast(self.base.shape, self.recipe, self.load, self.gpu, self.order.processes)

    @cached_property
    def gpu(self) -> Gpu | None:
        """The figures of this machine's GPU, where we have some."""
        return gpu_of(torch.cuda.get_device_name()) if self.device.type == "cuda" else None

    @cached_property
    def load(self) -> Load:
        """What the micro-batches hold."""
        return load_of(self.order)

    def adapt(self) -> Session:
        """Load the base, with a fresh adapter or the one that training goes on from."""
        session = self.base.adapted(self.recipe, self.device)
        if self.recipe.model.adapter:
            session.load_adapter(Path(self.recipe.model.adapter))
        return session

    def check_first_loss(self, session: Session) -> None:
        """Whether the base reads the rows at all, before a step. Raises TrainError."""

        def loss(rows: list[Encoded]) -> float:
            return evaluate(session.adapted, rows, self.recipe, self.device)

        tokenizer = self.base.tokenizer
        bos = None if tokenizer.bos_id in tokenizer.stop_ids else tokenizer.bos_id
        check_reading(self.checks, self.data.train, bos, loss)
        self.checks.end()

    def ask(self, session: Session, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Samples and scores of the model as it is now; `before`: what it said before the training."""
        examples, dpo = self.data.examples, self.recipe.dpo
        asked = examples.test or examples.validation or examples.train
        chats = [e.messages[:-1] for e in asked if e.messages][:SAMPLES]
        said: dict[str, Any] = {
            "prompts": chats,
            "replies": session.answer(chats, SAMPLE_TOKENS) if chats else [],
        }
        if not dpo:
            return said | {"scores": score(self.data.loaded.layout, session, examples.test, examples.train)}
        found = margins(session.adapted, self.data.test, self.device)
        scores = preference_scores(found, before["margins"] if before else [], dpo.beta)
        if examples.test:
            scores["loss_of_chosen"] = session.loss(examples.test)
        return said | {"margins": found, "scores": scores}

    def base16_loss(self) -> float | None:
        """Validation loss of the base in 16 bit, where the base is small and was quantised."""
        if (
            self.recipe.dpo
            or self.recipe.bnb is None
            or self.base.shape.parameters > SMALL
            or not self.data.validation
        ):
            return None
        recipe = self.recipe.model_copy(update={"bnb": None, "fully_shard": False, "precision": "16-bit"})
        adapted = Adapted(self.base.load(recipe, self.device), recipe, self.device)
        return evaluate(adapted, self.data.validation, recipe, self.device)

    def train(self, session: Session, resume: bool) -> Progress:
        """Train, with a bar and metrics.jsonl."""
        bar = tqdm(total=self.order.steps, desc="Training", unit="step", disable=not self.is_main)
        foreseen = forecast.flops_per_token(self.base.shape, self.load, self.trainable)
        gpu = self.gpu

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
                tqdm.write(f"step {line['step']}: validation loss {line['eval_loss']:.4f}{_order(line)}")
            files.append_metrics(self.folder, line)

        kind = DPOTrainer if self.recipe.dpo else SFTTrainer
        trainer = kind(session.adapted, self.recipe, self.order, self.data.validation, self.folder, note)
        if resume:
            trainer.resume()
            if self.is_main:
                files.keep_metrics_until(self.folder, trainer.progress.step or -1)
        bar.update(trainer.progress.step)
        try:
            return trainer.run()
        finally:
            bar.close()

    @property
    def trainable(self) -> int:
        """Parameters of the adapter."""
        return trainable(self.recipe.lora, self.base.shape.linears, self.base.shape.beside)

    def minutes(self, tokens_per_s: float) -> float:
        """Minutes of all steps at this speed of one GPU."""
        tokens = self.load.tokens * self.recipe.args.gradient_accumulation_steps * self.order.steps
        return tokens / tokens_per_s / 60

    def too_large(self) -> str:
        """What to do when the memory wasn't enough."""
        args = self.recipe.args
        cures = []
        if self.order.processes > 1 and not (self.recipe.fully_shard or self.recipe.dpo):
            cures.append("fully_shard: true (beside SFTConfig)")
        if self.recipe.fast:
            cures.append(f"memory: lean (beside {args.title})")
        if args.per_device_train_batch_size > 1:
            half = args.per_device_train_batch_size // 2
            twice = 2 * args.gradient_accumulation_steps
            cures.append(f"per_device_train_batch_size: {half} with gradient_accumulation_steps: {twice}")
        cures.append(f"max_length: {args.max_length // 2}")
        return f"the GPU's memory is too small for a step; in {args.title}, try {', then '.join(cures)}"


def _order(line: Mapping[str, Any]) -> str:
    """What an evaluation says of pairs; nothing before the first step, as the reference prefers neither."""
    if not line.get("eval_margin"):
        return ""
    return f", {line['eval_accuracy']:.0%} of the pairs in order, by {line['eval_margin']:.3f}"


def order_of(rows: list[Encoded], recipe: Recipe, processes: int = 1, process: int = 0) -> Order:
    """The micro-batches of a run."""
    kind = PairOrder if recipe.dpo else Order
    return kind(rows, recipe.args, processes, process)


def load_of(order: Order) -> Load:
    """What the micro-batches of a run hold; of a long run, its first steps."""
    lengths = [row.length for row in order.rows]
    trained = [sum(sum(side.mask[1:]) for side in sides([row])) for row in order.rows]
    batches = [rows for step in range(min(order.steps, LOOKED_AT)) for rows in order.micro_batches(step)]
    tokens = [order.tokens(rows) for rows in batches]
    counted = [sum(trained[row] for row in rows) for rows in batches]
    return Load(
        tokens=sum(tokens) / len(batches),
        trained=sum(counted) / len(batches),
        most_tokens=max(tokens),
        most_trained=max(counted),
        longest=sum(n * n for n in lengths) / sum(lengths),
    )


_TASKS: dict[str, Callable[[Scored, list[Example], list[Example]], dict[str, float]]] = {
    "quotes": quotes.score,
    "code": code_instructions.score,
    "sms": sms.score,
}


def score(task: str, model: Scored, tests: list[Example], train: list[Example]) -> dict[str, float]:
    """Return figures by their names: `test_loss` (nats a token), and those of the task's own file.

    A chat has its held-out loss only. So have plain texts, since their prompts aren't chats. What can't be
    computed (no test rows, one class only) is left out. Raises TrainError for a loss that is no number.
    """
    figures = {"test_loss": a_number(model.loss(tests), "on the test rows")} if tests else {}
    plain = any(not example.messages for example in [*tests, *train])
    if task in _TASKS and not plain:
        figures |= _TASKS[task](model, tests, train)
    return figures
