"""Training on answers by TRL's SFTTrainer: the negative log likelihood of the tokens that count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from trl.trainer.sft_trainer import SFTTrainer as Upstream

from train import sharding
from train.evaluation import evaluate
from train.examples import Encoded
from train.model import Adapted
from train.trainer import Training


class SFTTrainer(Training, Upstream):
    """The model is `Adapted` itself, which gives the summed loss of a packed batch.

    `others` are rows whose losses are told beside the validation's, `eval_<name>`: what else it can still do.
    """

    others: Mapping[str, Sequence[Encoded]] = MappingProxyType({})

    def model_of(self, adapted: Adapted) -> Any:
        """Without PEFT's wrapper, whose hooks take 17 ms a call."""
        return adapted

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """A base that is shared out isn't accelerate's, which refuses to replicate what is beside it."""
        model = super()._wrap_model(model, training, dataloader)
        if self.adapted.shared and model is self.adapted:
            return sharding.replicated(model, self.args.device, self.accelerator.ddp_handler.to_kwargs())
        return model

    def loss_of(self, model: Any, batch: Any) -> torch.Tensor:
        """In nats, of the batch's trained tokens."""
        loss: torch.Tensor = model(batch)
        return loss

    def validated(self, between: Callable[[], None]) -> dict[str, float]:
        """The losses in nats over all tokens, and not means of batch means."""
        device = self.args.device
        return {
            f"eval_{name}": evaluate(self.adapted, rows, self.recipe, device, between)
            for name, rows in {"loss": self.validation, **self.others}.items()
        }
