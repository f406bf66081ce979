"""The training loop: steps, evaluations, checkpoints; the same from a checkpoint on as without a break."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from core.errors import TrainError
from core.files import recover_folder, whole_folder
from train.batches import Order, in_order
from train.checkpoint import load_checkpoint, save_checkpoint
from train.examples import Encoded
from train.model import Adapted
from train.optimizer import make_optimizer, make_schedule
from train.recipe import Recipe
from train.stops import on_stop

DIVERGED = 1.5  # times the first evaluation's loss: training has made the model worse than it was

Report = Callable[[dict[str, Any]], None]  # gets a line of metrics.jsonl


@dataclass
class Progress:
    """What the loop counts; all of it is in a checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    start_loss: float | None = None  # before the first step, on the validation rows
    best_loss: float = math.inf
    best_step: int = 0
    last_loss: float | None = None
    worse: int = 0  # evaluations since the best
    evaluated: int = 0  # the step of the last evaluation
    grad_norm_max: float = 0.0
    stopped: str = ""  # why, when before the last step


@dataclass
class _Window:
    """Sums since the last line of the log; on the device, so that no step waits for it."""

    loss: torch.Tensor
    trained: int = 0
    tokens: int = 0
    norms: list[torch.Tensor] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)


class Loop:
    """One adapter's training in `folder`, with rows to train on and rows to evaluate on (maybe none)."""

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
        self.sft, self.folder, self.report = recipe.sft, folder, report
        self.parameters = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        self.model: nn.Module = (
            DistributedDataParallel(adapted, broadcast_buffers=False) if order.processes > 1 else adapted
        )
        self.optimizer = make_optimizer(self.parameters.values(), self.sft)
        self.schedule = make_schedule(self.optimizer, self.sft, order.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=adapted.dtype == torch.float16)
        self.progress = Progress()
        self._interrupted = False
        self._saved = time.monotonic()

    @property
    def last(self) -> Path:
        return self.folder / "checkpoint"

    def resume(self) -> None:
        """Go back to the checkpoint, if there is one."""
        recover_folder(self.last)
        recover_folder(self.folder / "adapter")
        if self.last.is_dir():
            saved = load_checkpoint(self.last, self.parameters, self.optimizer)
            if saved["processes"] != self.order.processes:
                raise TrainError(
                    f"{self.folder.name} was begun by {saved['processes']} processes and would go on with "
                    f"{self.order.processes}, in another order; start it with accelerate launch as before"
                )
            self.schedule.load_state_dict(saved["schedule"])
            for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
                group["lr"] = rate  # the schedule sets it after a step only
            self.scaler.load_state_dict(saved["scaler"])
            self.progress = Progress(**{"evaluated": saved["progress"]["step"]} | saved["progress"])

    def run(self) -> Progress:
        """Train to the end; return what was reached. Raises TrainError, or KeyboardInterrupt after Ctrl-C."""
        if not self.progress.step:  # of dropout: whatever was drawn before, and another for each process
            torch.manual_seed((self.sft.seed + self.order.process) % 2**64)
        if self.progress.start_loss is None and self.validation:
            self.progress.start_loss = self._evaluate()
        window = self._window()
        with on_stop(self._note):
            if self._due and self.progress.evaluated != self.progress.step:
                self._keep()  # the evaluation that a stop cut short
            while self.progress.step < self.order.steps and not self.progress.stopped:
                self._step(window)
                logs = self.progress.step % self.sft.logging_steps == 0
                evaluates = self._due
                # Several processes look at the same steps only, or some would wait for the others forever.
                stops = (logs or not self._ddp) and self._agreed(self._interrupted)
                saves = time.monotonic() - self._saved > 60 * self.recipe.save_minutes
                if logs or evaluates or stops or saves:
                    self._log(window)
                if stops or saves:
                    self._save()
                if stops:
                    raise KeyboardInterrupt
                if evaluates:
                    self._keep()
                if logs or evaluates or saves:
                    window = self._window()
        if self._interrupted and not self._ddp:
            raise KeyboardInterrupt  # during the last evaluation, after which all was saved
        return self.progress

    @property
    def _due(self) -> bool:
        """Whether this step is followed by an evaluation."""
        step, every = self.progress.step, self.sft.eval_steps or self.order.steps_per_epoch
        return step > 0 and (step % every == 0 or step == self.order.steps)

    def _note(self, number: int, frame: Any) -> None:
        """Let a step end before Ctrl-C counts; the second counts at once."""
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def _window(self) -> _Window:
        return _Window(torch.zeros((), device=self.device))

    def _step(self, window: _Window) -> None:
        batches = self.order.step(self.progress.step)
        trained = self.order.trained(self.progress.step)
        self.model.train()
        for number, batch in enumerate(batches, 1):
            # Gradients of all processes are averaged, at the last batch only.
            waits = isinstance(self.model, DistributedDataParallel) and number < len(batches)
            with self.model.no_sync() if waits else nullcontext():  # type: ignore[operator]
                loss = self.model(batch.to(self.device))
                scale = self.order.processes / max(1, trained)
                self.scaler.scale(loss * scale).backward()
            window.loss += loss.detach()
            window.trained += batch.trained
            window.tokens += batch.tokens
            self.progress.tokens += batch.tokens * self.order.processes
        self.scaler.unscale_(self.optimizer)
        window.norms.append(nn.utils.clip_grad_norm_(self.parameters.values(), self.sft.max_grad_norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1

    @property
    def _ddp(self) -> bool:
        return isinstance(self.model, DistributedDataParallel)

    def _agreed(self, number: float) -> float:
        """The first process's number: all must decide the same, or they wait for each other forever."""
        if self._ddp:
            shared = torch.tensor(number, device=self.device, dtype=torch.float64)
            torch.distributed.broadcast(shared, 0)
            return shared.item()
        return number

    def _log(self, window: _Window) -> None:
        loss = window.loss.item() / max(1, window.trained)  # waits for the device: the time is the work's
        seconds = time.perf_counter() - window.began
        self.progress.seconds += seconds
        norms = torch.stack(window.norms)
        norm = norms.max().item()
        self.progress.grad_norm_max = max(self.progress.grad_norm_max, norm)
        on_gpu = self.device.type == "cuda"
        self.report(
            {
                "step": self.progress.step,
                "loss": loss,
                "grad_norm": norms[-1].item(),
                "lr": self.schedule.get_last_lr()[0],
                "tokens": self.progress.tokens,
                "tokens_per_s": window.tokens * self.order.processes / seconds,
                "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
                "epoch": self.progress.step / self.order.steps_per_epoch,
            }
        )
        overflowed = self.scaler.is_enabled() and math.isfinite(loss)  # the scaler left that step out
        if not math.isfinite(loss) or not (math.isfinite(norm) or overflowed):
            raise TrainError(
                f"the loss is {loss} and the gradient {norm} at step {self.progress.step}: training broke. "
                f"The best adapter so far is kept. Lower learning_rate ({self.sft.learning_rate:g})"
            )

    def _keep(self) -> None:
        """Evaluate, keep the adapter if it is the best so far, and save the state."""
        if self.validation:
            loss = self.progress.last_loss = self._evaluate()
            if loss < self.progress.best_loss:
                self.progress.best_loss, self.progress.best_step = loss, self.progress.step
                self.progress.worse = 0
                self._save_adapter()
            else:
                self.progress.worse += 1
            patience = self.sft.early_stopping_patience
            if patience and self.progress.worse >= patience:
                self.progress.stopped = f"no lower loss in {patience} evaluations"
            if not loss <= DIVERGED * (self.progress.start_loss or math.inf):  # NaN too
                self.progress.stopped = (
                    f"diverged: {loss:.2f} after {self.progress.start_loss:.2f} at the start"
                )
        else:
            self.progress.best_step = self.progress.step
            self._save_adapter()
        self.progress.evaluated = self.progress.step
        self._save()

    def _evaluate(self) -> float:
        def stopped() -> None:
            """A long evaluation is cut short: it is done again by whoever goes on."""
            if self._interrupted and not self._ddp:
                self._save()
                raise KeyboardInterrupt

        found = evaluate(self.adapted, self.validation, self.recipe, self.device, stopped)
        loss = self._agreed(found)
        self.report({"step": self.progress.step, "eval_loss": loss, "tokens": self.progress.tokens})
        return loss

    def _save_adapter(self) -> None:
        if self.order.process == 0:
            with whole_folder(self.folder / "adapter") as partial:
                self.adapted.save(partial)

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self.order.process == 0:
            state = {
                "progress": asdict(self.progress),
                "processes": self.order.processes,
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            save_checkpoint(self.last, self.parameters, self.optimizer, state)


@torch.no_grad()
def evaluate(
    adapted: Adapted,
    rows: Sequence[Encoded],
    recipe: Recipe,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
) -> float:
    """Mean loss in nats over all trained tokens of `rows`; `between` is called after each batch."""
    adapted.eval()
    size = recipe.sft.per_device_eval_batch_size or recipe.sft.per_device_train_batch_size
    total, trained = torch.zeros((), device=device), 0
    for batch in in_order(rows, recipe.sft.max_length, size):
        total += adapted(batch.to(device))
        between()
        trained += batch.trained
    return total.item() / max(1, trained)
