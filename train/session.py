"""One model in memory: the base, once; adapters on it, one after the other; and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from core.command import command_line
from core.errors import TrainError
from core.tokenizer import ChatTokenizer
from train.base import find_base, fingerprint, hub_errors, load_config
from train.evaluation import evaluate
from train.examples import Example
from train.generate import greedy, label_probabilities
from train.gptq import is_gptq
from train.labels import cut, encode
from train.model import Adapted, load_base
from train.recipe import Recipe
from train.shape import Shape, shape_of

CPU_LIMIT = 1_000_000_000  # parameters; above, a step takes minutes


class Base:
    """A base that is found, its config and tokenizer; the weights come when they are asked for."""

    def __init__(self, recipe: Recipe, rendered: str = "") -> None:
        """Find it; `rendered`: the time that its template is told, now where it is empty."""
        self.folder = find_base(recipe.model)
        self.config: Any = load_config(self.folder, recipe.model.revision)
        _check_method(self.config, recipe, self.folder)
        with hub_errors(self.folder, recipe.model.revision):
            self.tokenizer = ChatTokenizer(self.folder, recipe.model.revision, rendered)
        try:
            self.shape: Shape = shape_of(self.config)
        except (AttributeError, ValueError) as error:
            kind = self.config.model_type
            raise TrainError(f"a {kind} like {self.folder!r} can't be trained here ({error})") from None

    @cached_property
    def content(self) -> str:
        """A hash of the weights and config: of a folder's files, or of the hub's commit; "" if unknown."""
        return fingerprint(self.folder) or getattr(self.config, "_commit_hash", None) or ""

    def check_device(self, device: torch.device) -> None:
        """Raise TrainError where a step would take minutes."""
        if device.type == "cpu" and self.shape.parameters > CPU_LIMIT:
            raise TrainError(
                f"{self.folder} has {self.shape.parameters / 1e9:.1f} billion parameters and this machine "
                "has no CUDA GPU: a step would take minutes. Train it where one is (--plan says what it "
                f"needs), or take the tour here: {command_line('train/qlora.py', ['smollm2-quotes'])}"
            )

    def load(self, recipe: Recipe, device: torch.device) -> PreTrainedModel:
        """The frozen weights on the device. Raises TrainError."""
        self.check_device(device)
        with hub_errors(self.folder, recipe.model.revision):
            return load_base(self.folder, recipe, device)

    def adapted(self, recipe: Recipe, device: torch.device) -> Session:
        """The base in memory, with a fresh adapter that changes nothing yet. Raises TrainError."""
        adapted = Adapted(self.load(recipe, device), recipe, device)
        return Session(adapted, self.tokenizer, recipe, device)


def _check_method(config: Any, recipe: Recipe, folder: str) -> None:
    """Raise TrainError where the recipe and the base disagree on whether GPTQ quantised it."""
    if is_gptq(config.to_dict()) == bool(recipe.gptq):
        return
    if recipe.gptq:
        raise TrainError(
            f"GPTQConfig is for a base that GPTQ quantised, and {folder} is none; leave the section out, or "
            "say BitsAndBytesConfig: {load_in_4bit: true} in its place"
        )
    raise TrainError(
        f"{folder} is quantised by GPTQ: say GPTQConfig: {{bits: 4}}, and no BitsAndBytesConfig "
        "(--set BitsAndBytesConfig=null --set GPTQConfig.bits=4)"
    )


def device_of(state: PartialState) -> torch.device:
    """The device of this process."""
    device: torch.device = state.device
    return device if device.type == "cuda" else torch.device("cpu")


@dataclass
class Session:
    """A model with an adapter, as the scores ask it (`train.tasks.scored.Scored`)."""

    adapted: Adapted
    tokenizer: ChatTokenizer
    recipe: Recipe
    device: torch.device

    def __post_init__(self) -> None:
        self.adapted.template = self.tokenizer.chat_template

    def answer(self, chats: Sequence[list[dict[str, str]]], max_new_tokens: int | Sequence[int]) -> list[str]:
        """Greedy replies."""
        return greedy(self.adapted, self.tokenizer, chats, max_new_tokens)

    def label_probabilities(
        self, chats: Sequence[list[dict[str, str]]], labels: Sequence[str]
    ) -> list[list[float]]:
        """Probabilities of the labels as the reply."""
        return label_probabilities(self.adapted, self.tokenizer, chats, labels)

    def loss(self, examples: Sequence[Example]) -> float:
        """Nats a trained token."""
        assistant_only, longest = self.recipe.args.assistant_only_loss, self.recipe.args.max_length
        rows = [
            cut(sequence, example, longest)
            for example in examples
            for sequence in encode(self.tokenizer, example, assistant_only)
        ]
        return evaluate(self.adapted, rows, self.recipe, self.device)

    def load_adapter(self, folder: Path) -> None:
        """Give the adapter the weights of a saved one. Raises TrainError."""
        self.adapted.load(folder)

    def check_adapter(self, folder: Path) -> None:
        """Raise TrainError where `load_adapter` would."""
        self.adapted.read(folder)
