"""What a run has reached, by its evaluations: the best adapter, patience that ends, and divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from core.errors import TrainError, TrainingBroke
from train.batches import in_order
from train.examples import Encoded
from train.model import Adapted
from train.recipe import Recipe

DIVERGED = 1.5  # times the first evaluation's loss: training has made the model worse than it was


@dataclass
class Progress:
    """What is counted; all of it is in a checkpoint."""

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

    def judge(self, loss: float, patience: int | None) -> bool:
        """Note an evaluation's loss: whether it is the best so far, and whether to stop for it."""
        self.last_loss = loss
        best = loss < self.best_loss
        if best:
            self.best_loss, self.best_step, self.worse = loss, self.step, 0
        else:
            self.worse += 1
        if patience and self.worse >= patience:
            self.stopped = f"no lower loss in {patience} evaluations"
        if not loss <= DIVERGED * (self.start_loss or math.inf):  # NaN too
            self.stopped = f"diverged: {loss:.2f} after {self.start_loss:.2f} at the start"
        return best

    def refuse_no_numbers(self, loss: float, norm: float, scaled: bool, learning_rate: float) -> None:
        """Raise TrainingBroke for no numbers; with `scaled`, an overflow's step was left out."""
        overflowed = scaled and math.isfinite(loss)
        if not math.isfinite(loss) or not (math.isfinite(norm) or overflowed):
            raise TrainingBroke(
                f"the loss is {loss} and the gradient {norm} at step {self.step}: training broke. "
                f"{'The best adapter so far is kept. ' if self.best_step else ''}"
                f"Lower learning_rate ({learning_rate:g})"
            )


def a_number(loss: float, where: str) -> float:
    """`loss`, measured at `where`. Raises TrainError where it is no number, which JSON doesn't know."""
    if not math.isfinite(loss):
        raise TrainError(
            f"the loss {where} is {loss}, which is no number: the weights of the base or of the adapter are "
            "broken. Get the base again, or train anew with a lower learning_rate"
        )
    return loss


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
    size = recipe.args.per_device_eval_batch_size or recipe.args.per_device_train_batch_size
    total, trained = torch.zeros((), device=device), 0
    for batch in in_order(rows, recipe.args.max_length, size):
        total += adapted(batch.to(device))
        between()
        trained += batch.trained
    return total.item() / max(1, trained)
