"""What our trainers share, around TRL's: its loop, schedules, optimizers and callbacks, and our order.

A step of the order is one item of the trainer's data, so that accumulation, the tokens that count and a
resume mean the same for any number of processes. Evaluations are means over all tokens (upstream's is a mean
of batch means), and checkpoints are written aside and renamed (upstream's aren't).
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl
from transformers.trainer import TRAINER_STATE_NAME

from core.errors import TrainError
from core.files import partial_of, recover_folder, whole_folder
from train.arguments import arguments
from train.batches import Order, loader
from train.evaluation import Progress
from train.examples import Encoded
from train.folder import disk_errors, read_json
from train.logged import Logged, Report
from train.model import Adapted
from train.recipe import Recipe
from train.stops import on_stop

PROGRESS = "progress.json"  # in a checkpoint, beside transformers' files


@dataclass
class Saved(Progress):
    """What `PROGRESS` holds."""

    processes: int = field(kw_only=True)


class Training(Logged, ABC):
    """One adapter's training in `folder`, with rows to train on and rows to evaluate on (maybe none).

    A trainer of TRL's comes after it among a class's parents: `train.sft`, `train.dpo`.
    """

    loss_is_scaled_for_ga: Any = True  # by what counts in the whole step
    control: TrainerControl

    def __init__(
        self,
        adapted: Adapted,
        recipe: Recipe,
        order: Order,
        validation: Sequence[Encoded],
        folder: Path,
        report: Report,
    ) -> None:
        self.adapted, self.recipe, self.order, self.validation = adapted, recipe, order, validation
        self.folder, self._checkpoint, self.report = folder, folder / "checkpoint", report
        self.fp8_steps = recipe.fp8_steps(order.steps)  # the first ones
        self.parameters = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
        device = next(iter(self.parameters.values())).device
        self.progress = Progress()
        self._begun = self._interrupted = self._cut = False
        # Asked for, and not used: the rows are tokens already, and the loader below makes batches of them.
        unused: Any = {
            "train_dataset": Dataset.from_dict({"step": [0]}),
            "data_collator": list,
            "processing_class": PreTrainedTokenizerBase(),  # type: ignore[no-untyped-call]
        }
        args = arguments(recipe, order.steps, folder, device)
        super().__init__(self.model_of(adapted), args=args, callbacks=[_Calls(self)], **unused)
        self.processing_class = None  # or its special tokens would replace the model's
        self.remove_callback(PrinterCallback)

    @abstractmethod
    def model_of(self, adapted: Adapted) -> Any:
        """What TRL's trainer gets as its model."""

    @abstractmethod
    def loss_of(self, model: Any, batch: Any) -> torch.Tensor:
        """The loss of a micro-batch, summed over what counts in it."""

    @abstractmethod
    def validated(self, between: Callable[[], None]) -> dict[str, float]:
        """`eval_loss`, a mean over what counts in the validation rows, and perhaps more figures."""

    def resume(self) -> None:
        """Go back to the checkpoint, if there is one. Raises TrainError."""
        recover_folder(self._checkpoint)
        recover_folder(self.folder / "adapter")
        if not self._checkpoint.is_dir():
            return
        if not (self._checkpoint / PROGRESS).is_file():
            raise TrainError(
                f"{self._checkpoint} was written by another version of this program; train it anew"
            )
        cure = f"or move {self._checkpoint} away, and it is trained from its first step"
        saved: Saved = read_json(self._checkpoint / PROGRESS, Saved, cure)
        if (begun := saved.processes) != self.order.processes:
            raise TrainError(
                f"{self.folder.name} was begun by {begun} processes and would go on with "
                f"{self.order.processes}, in another order; start it with accelerate launch as before"
            )
        self.progress, self._begun = saved, True

    def run(self) -> Progress:
        """Train to the end; return what was reached. Raises TrainError, or KeyboardInterrupt after Ctrl-C."""
        if self._begun:
            self.adapted.load(self._checkpoint)
        with on_stop(self._note):
            if self.progress.start_loss is None and self.validation:
                self.progress.start_loss = self._evaluated()
            if self._due and self.progress.evaluated != self.progress.step:
                self._keep()  # the evaluation that a stop cut short
            if not self.progress.stopped:
                self.train(str(self._checkpoint) if self._begun else None)
        if self._cut or (self._interrupted and not self._ddp):  # after the last evaluation all was saved
            raise KeyboardInterrupt
        return self.progress

    def begin(self) -> None:
        """Right before the first step, or the first after a break."""
        if not self.progress.step:  # of dropout: whatever was drawn before, and another for each process
            torch.manual_seed((self.recipe.args.seed + self.order.process) % 2**64)
        self._saved = time.monotonic()
        self._window()

    def step_ended(self) -> None:
        """Decide what follows a step: a line of the log, an evaluation, a checkpoint, the end."""
        self.progress.step = self.state.global_step
        logs, evaluates = self.control.should_log, self._due
        # Several processes look at the same steps only, or some would wait for the others forever.
        overdue = time.monotonic() - self._saved > 60 * self.recipe.save_minutes
        stops, saves = self._agreed(self._interrupted, overdue) if logs or not self._ddp else (False, False)
        self.control.should_log = logs or evaluates or stops or saves
        self.control.should_evaluate = evaluates and not stops
        self.control.should_save = evaluates or stops or saves
        if stops:
            self._cut = self.control.should_training_stop = True

    @property
    def _due(self) -> bool:
        """Whether this step is followed by an evaluation."""
        step, every = self.progress.step, self.order.steps_per_evaluation
        return step > 0 and (step % every == 0 or step == self.order.steps)

    def _note(self, number: int, frame: Any) -> None:
        """Let a step end before Ctrl-C counts; the second counts at once."""
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    @property
    def _ddp(self) -> bool:
        return self.order.processes > 1

    def _agreed(self, *numbers: float) -> list[Any]:
        """The first process's numbers: all must decide the same, or they wait for each other forever."""
        if not self._ddp:
            return list(numbers)
        shared = torch.tensor(numbers, device=self.args.device, dtype=torch.float64)
        torch.distributed.broadcast(shared, 0)
        return shared.tolist()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The steps in their order. Not accelerate's: each process makes its own share of a step."""
        return loader(self.order)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """Tokens that count in a step, in all processes: no count on the device, and no gathering."""
        return sum(step.trained for step in batch_samples)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over all micro-batches of a step; the mean loss of its tokens."""
        model.train()
        if self.state.global_step >= self.fp8_steps:
            self.adapted.leave_fp8()
        scale = self.order.processes / max(1, num_items_in_batch)  # gradients of all processes are averaged
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs.batches, 1):
            waits = self._ddp and number < len(inputs.batches)
            with self.accelerator.no_sync(model) if waits else nullcontext():
                loss = self.loss_of(model, batch.to(self.args.device)) * scale
                self.accelerator.backward(loss)
            total += loss.detach()
            self.progress.tokens += batch.tokens * self.order.processes
        return total

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        ours = list(self.parameters.values())
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(ours, self.args.max_grad_norm)
        self._norm_max = torch.maximum(self._norm_max, norm)
        return norm

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The validation loss; keeps the adapter if it is the best so far, and may end the training."""
        self._keep()
        self.control.should_training_stop |= bool(self.progress.stopped)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, found := {"eval_loss": self.progress.last_loss or 0.0}
        )
        self._window()
        return found

    def _keep(self) -> None:
        """Evaluate, and keep the adapter if it is the best so far."""
        progress = self.progress
        if self.validation:
            loss, last = self._evaluated(), progress.step == self.order.steps
            patience = None if last else self.recipe.args.early_stopping_patience
            if progress.judge(loss, patience):
                self._save_adapter()
        else:
            progress.best_step = progress.step
            self._save_adapter()
        progress.evaluated = progress.step

    def _evaluated(self) -> float:
        """The validation loss as it is now, over all tokens and not a mean of batch means."""

        def stopped() -> None:
            """A long evaluation is cut short: it is done again by whoever goes on."""
            if self._interrupted and not self._ddp:
                if self.optimizer is not None:
                    self._save_checkpoint(self.model)
                raise KeyboardInterrupt

        found = self.validated(stopped)
        agreed = dict(zip(found, self._agreed(*found.values()), strict=True))
        self.log(agreed)
        return float(agreed["eval_loss"])

    def _save_adapter(self) -> None:
        if self.order.process == 0:
            with whole_folder(self.folder / "adapter") as partial:
                self.adapted.save(partial)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Adapter, optimizer, schedule and random numbers, written aside and renamed."""
        self._saved = time.monotonic()
        main = self.order.process == 0
        with whole_folder(self._checkpoint) if main else nullcontext(partial_of(self._checkpoint)) as partial:
            self.accelerator.wait_for_everyone()  # the folder is there
            with disk_errors():
                self._save_optimizer_and_scheduler(str(partial))
                self._save_scaler(str(partial))
                self._save_rng_state(str(partial))
            if main:
                self.adapted.save(partial)
                self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
                saved = asdict(self.progress) | {"processes": self.order.processes}
                (partial / PROGRESS).write_text(json.dumps(saved), encoding="utf-8")
            self.accelerator.wait_for_everyone()  # all of it is there
        self._window()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: `run` has done it."""

    def _send_telemetry(self) -> None:
        """Nothing is told of what is trained here."""


class _Calls(TrainerCallback):
    """Tells the trainer where its loop is."""

    def __init__(self, trainer: Training) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._trainer.step_ended()
