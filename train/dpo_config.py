"""The section DPOConfig: training on pairs of a chosen and a rejected answer (arXiv 2305.18290).

The names of losses and divergences are read from TRL's trainer, which checks some of them in the middle of a
run, and what they don't fit together with.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from train.sections import SHARED, Above0, Arguments, Positive, Tokens
from train.upstream import names_in, of

_TRAINER = ("trl", "trainer/dpo_trainer.py")
LOSSES = names_in(*_TRAINER, r'loss_type == "(\w+)"')
DIVERGENCES = names_in(*_TRAINER, r'f_divergence_type == "(\w+)"')
# Of these the divergence counts: the others would need a term that cancels in a difference alone.
WITH_DIVERGENCE = re.findall(r"\w+", names_in(*_TRAINER, r"f_divergence_loss_types = \{(.+?)\}")[0])
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")  # the losses that read label_smoothing


def _one_or_several(value: Any) -> Any:
    """As upstream, one name is a list of it."""
    return [value] if isinstance(value, str) else value


Names: Any = Annotated[
    list[Literal[tuple(LOSSES)]],  # type: ignore[misc]
    BeforeValidator(_one_or_several),
    Field(min_length=1),
]


@of("DPOConfig", **SHARED, loss_type=Names, f_divergence_type=Literal[tuple(DIVERGENCES)])
class Dpo(Arguments):
    """Training on preferences."""

    title: ClassVar[str] = "DPOConfig"
    packing: ClassVar[bool] = False  # pairs are padded
    assistant_only_loss: ClassVar[bool] = True
    rest: ClassVar[frozenset[str]] = Arguments.rest | {
        "loss_weights",
        "label_smoothing",
        "ld_alpha",
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "use_weighting",
        "discopop_tau",
    }

    max_length: Tokens = 2048  # tokens of prompt and answer; a pair with a longer one is left out and counted
    learning_rate: Positive = 5e-6  # that of TRL's own script for adapters
    beta: Positive = 0.1  # how much it costs to go away from the reference
    loss_type: list[str] = Field(["sigmoid"])  # DPO's own is `sigmoid`
    disable_dropout: bool = True
    precompute_ref_log_probs: bool = False  # the reference reads all pairs once, before the first step
    precompute_ref_batch_size: Above0 | None = None  # otherwise as in training
    loss_weights: list[Positive] | None = None  # of several losses
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # the share of labels that are wrong
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: Annotated[float, Field(ge=0, le=1)] = 0.5
    use_weighting: bool = False
    discopop_tau: Positive = 0.05

    @model_validator(mode="after")
    def _fits(self) -> Dpo:
        losses = {*self.loss_type}
        weights = self.loss_weights
        if weights is not None and len(weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights: {len(weights)} for the {len(self.loss_type)} of loss_type; say as many"
            )
        if len(losses) < len(self.loss_type):
            raise ValueError("loss_type: a loss is there twice; say loss_weights to have it count for more")
        if "exo_pair" in losses and not self.label_smoothing:
            raise ValueError("loss_type: exo_pair needs label_smoothing; its paper (2402.00856) has 1e-3")
        if self.f_divergence_type != "reverse_kl" and (wrong := sorted(losses - {*WITH_DIVERGENCE})):
            raise ValueError(f"f_divergence_type: {wrong[0]} is defined for reverse_kl alone; leave it out")
        if self.use_weighting and (wrong := sorted(losses & {"aot", "aot_unpaired"})):
            raise ValueError(f"use_weighting: {wrong[0]} sorts its pairs, which weights would be lost by")
        self._without_effect(losses)
        return self

    def _without_effect(self, losses: set[str]) -> None:
        """Raise ValueError for a key that nothing reads as the others are."""
        if self.label_smoothing and not losses & {*SMOOTHED}:
            raise ValueError(f"label_smoothing does nothing here; it is for loss_type {', '.join(SMOOTHED)}")
        if self.discopop_tau != 0.05 and "discopop" not in losses:
            raise ValueError("discopop_tau does nothing here; it is for loss_type discopop")
        if self.f_alpha_divergence_coef != 0.5 and self.f_divergence_type != "alpha_divergence":
            raise ValueError(
                "f_alpha_divergence_coef does nothing here; it is for f_divergence_type: alpha_divergence"
            )
        if self.precompute_ref_batch_size and not self.precompute_ref_log_probs:
            raise ValueError("precompute_ref_batch_size does nothing without precompute_ref_log_probs: true")
