"""Training on preferences by TRL's DPOTrainer: its losses, on our pairs, from a reference that stays.

The reference is the base with its adapter off; where training goes on from an earlier adapter, a frozen copy
of that. TRL takes a model of PEFT's and runs it by transformers, padded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from tqdm import tqdm
from trl.trainer.dpo_trainer import DPOTrainer as Upstream

from train.attention import VARLEN
from train.evaluation import Progress
from train.examples import Encoded
from train.model import ADAPTER, Adapted
from train.pair_batches import Logps, PairBatch, PairOrder, pairs_in_order
from train.trainer import Training

REFERENCE = "ref"  # what TRL calls the frozen copy of an adapter
FIGURES = {"rewards/accuracies": "accuracy", "rewards/margins": "margin"}  # TRL's names and ours


class DPOTrainer(Training, Upstream):
    """The model is PEFT's; a micro-batch is some pairs, and a step's loss the mean over its pairs."""

    also = (*FIGURES.values(),)
    order: PairOrder

    def __init__(self, adapted: Adapted, *given: Any) -> None:
        base, config = adapted.base, adapted.base.config
        self._forward = vars(base).get("forward")  # TRL puts its own there
        weights = [(parameter, parameter.data) for parameter in adapted.parameters_to_train()]
        pads = [(part, part.pad_token_id) for part in (config, base.generation_config)]
        super().__init__(adapted, *given)
        for part, pad in pads:
            part.pad_token_id = pad
        for parameter, data in weights:  # TRL rounds them to bf16 on a quantised base
            parameter.data = data
        self._sums = dict.fromkeys((*self.also, "pairs"), 0.0)
        self._known: Sequence[Logps] = ()  # of the validation rows
        if self.recipe.model.adapter:
            self._freeze_reference()
        else:
            adapted.peft.delete_adapter(REFERENCE)
        dpo = self.recipe.dpo
        if dpo and dpo.precompute_ref_log_probs:
            size = dpo.precompute_ref_batch_size or dpo.per_device_train_batch_size
            rows = self.order.visited
            known = self._reference([self.order.rows[row] for row in rows], size)
            self.order.reference = dict(zip(rows, known, strict=True))
            self._known = self._reference(self.validation, size)
            self.precompute_ref_logps = True

    def model_of(self, adapted: Adapted) -> Any:
        """As PEFT wraps it, with an attention that reads masks."""
        if adapted.base.config._attn_implementation == VARLEN:
            adapted.base.set_attn_implementation("sdpa")
        return adapted.peft

    def loss_of(self, model: Any, batch: PairBatch) -> torch.Tensor:
        """Of the batch's pairs together."""
        compute: Any = self._compute_loss  # untyped
        with self._types():
            loss: torch.Tensor = compute(model, batch.inputs(), False)
        noted = self._metrics["train" if self.adapted.peft.training else "eval"]
        for theirs, ours in FIGURES.items():
            self._sums[ours] += noted[theirs][-1] * batch.trained
        self._sums["pairs"] += batch.trained
        noted.clear()
        return loss * batch.trained

    @torch.no_grad()
    def validated(self, between: Callable[[], None]) -> dict[str, float]:
        """The mean loss of a pair, the share of pairs in order, and the mean margin of their rewards.

        A reward is beta times what an answer is more probable by than the reference has it, in nats: before
        the first step no pair has an order.
        """
        self.adapted.eval()
        args, total = self.recipe.args, 0.0
        size = args.per_device_eval_batch_size or args.per_device_train_batch_size
        for batch in pairs_in_order(self.validation, size, self._known):
            total += self.loss_of(self.model, batch.to(self.args.device)).item()
            between()
        found = self._means()
        return {"eval_loss": total / len(self.validation)} | {f"eval_{k}": v for k, v in found.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the share of a step's pairs with the right order, and the margin."""
        if "loss" in logs:
            logs |= self._means()
        super().log(logs, start_time)

    def run(self) -> Progress:
        """Train to the end, and leave the model as it was found but for its adapter."""
        try:
            return super().run()
        finally:
            base = self.adapted.base
            if REFERENCE in self.adapted.peft.peft_config:
                self.adapted.peft.delete_adapter(REFERENCE)
            del base.forward
            if self._forward is not None:
                base.forward = self._forward

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """As it is: `train.pair_batches` makes the batches."""
        return dataset

    def _freeze_reference(self) -> None:
        """Make TRL's copy of the adapter exactly that, without dropout."""
        peft = self.adapted.peft
        for name, parameter in peft.named_parameters():
            if f".{REFERENCE}." in name:
                own = peft.get_parameter(name.replace(f".{REFERENCE}.", f".{ADAPTER}."))
                parameter.data = own.data.clone()
                parameter.requires_grad_(False)
        for module in peft.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout[REFERENCE] = torch.nn.Identity()

    @torch.no_grad()
    def _reference(self, rows: Sequence[Encoded], size: int) -> list[Logps]:
        """The log probabilities of both answers of each pair, as the reference has them."""
        self.adapted.eval()
        asked: Any = self.compute_ref_log_probs  # untyped
        found: list[Logps] = []
        for batch in tqdm(
            pairs_in_order(rows, size), "Reference", -(-len(rows) // size), delay=2, leave=False
        ):
            with self._types():
                both = asked(self.model, batch.to(self.args.device).inputs())
            found += zip(*(side.tolist() for side in both), strict=True)
        return found

    @contextmanager
    def _types(self) -> Iterator[None]:
        """The adapter is fp32 and the base may not be: autocast sees to types, as in `Adapted`."""
        adapted = self.adapted
        with (
            warnings.catch_warnings(),
            torch.autocast(self.args.device.type, adapted.dtype, enabled=adapted.dtype != torch.float32),
            disable_input_dtype_casting(adapted.peft),
        ):
            # TRL and PEFT use names that transformers 5.23 has renamed
            warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
            yield

    def _means(self) -> dict[str, float]:
        """The figures since this was asked last."""
        pairs = max(1.0, self._sums["pairs"])
        found = {name: self._sums[name] / pairs for name in self.also}
        self._sums = dict.fromkeys(self._sums, 0.0)
        return found
