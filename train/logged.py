"""The lines of a run's log: what a step was like, for trackers and metrics.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer

from train.batches import Order
from train.evaluation import Progress

Report = Callable[[dict[str, Any]], None]  # gets a line of metrics.jsonl


class Logged(Trainer):
    """A trainer that measures from one line of the log to the next."""

    order: Order
    progress: Progress
    report: Report
    also: tuple[str, ...] = ()  # figures of a step that metrics.jsonl has beside the loss

    def _window(self) -> None:
        """Begin to measure anew."""
        self._began, self._tokens = time.perf_counter(), self.progress.tokens
        self._norm_max = torch.zeros((), device=self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:
        """None: upstream's count walks all parameters."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what only this trainer knows; pass it to trackers and to metrics.jsonl. Raises TrainError."""
        progress = self.progress
        self.state.epoch = progress.step / self.order.steps_per_epoch
        if "loss" in logs:  # it waited for the device: the time is the work's
            seconds = time.perf_counter() - self._began
            progress.seconds += seconds
            norm = self._norm_max.item()
            if math.isfinite(norm):  # one that overflowed fp16 was no step
                progress.grad_norm_max = max(progress.grad_norm_max, norm)
            logs["tokens_per_s"] = (progress.tokens - self._tokens) / seconds
            if torch.cuda.is_available():
                logs["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            self.report(
                {
                    "step": progress.step,
                    "loss": logs["loss"],
                    "grad_norm": logs["grad_norm"],
                    "lr": logs["learning_rate"],
                    "tokens": progress.tokens,
                    "tokens_per_s": logs["tokens_per_s"],
                    "memory_gb": logs.get("memory_gb"),
                    "epoch": self.state.epoch,
                }
                | {key: logs[key] for key in self.also}
            )
            progress.refuse_no_numbers(logs["loss"], norm, self.args.fp16, self.args.learning_rate)
            self._window()
        elif "eval_loss" in logs:
            self.report({"step": progress.step} | logs | {"tokens": progress.tokens})
        Trainer.log(self, logs)
