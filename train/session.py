"""One model in memory: the base, once; adapters on it, one after the other; and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from core.command import command_line
from core.errors import TrainError
from core.prompt import Messages
from core.tokenizer import ChatTokenizer
from train.attention import VARLEN
from train.base import find_base, fingerprint, hub_errors, load_config
from train.evaluation import evaluate
from train.examples import Example
from train.gptq import is_gptq
from train.labels import cut, encode
from train.model import Adapted, load_base
from train.recipe import Recipe
from train.shape import Shape, shape_of

ADAPTER = "default"  # what PEFT calls the only one
TOGETHER = 32  # chats that are answered in a batch
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

    def answer(self, chats: Sequence[list[dict[str, str]]], max_new_tokens: int) -> list[str]:
        """Greedy replies."""
        return greedy(self.adapted, self.tokenizer, chats, max_new_tokens)

    def label_probabilities(
        self, chats: Sequence[list[dict[str, str]]], labels: Sequence[str]
    ) -> list[list[float]]:
        """For each chat the probability of each label as the reply, by its first token; they add up to 1.

        Raises TrainError if two labels begin with the same token.
        """
        found = []
        with torch.no_grad(), _generating(self.adapted) as model:
            for chat in chats:
                prompt = self.tokenizer.encoder.encode(chat)
                firsts = [_first_token(self.tokenizer, chat, len(prompt), label) for label in labels]
                if len(set(firsts)) < len(labels):
                    raise TrainError(
                        f"the labels {list(labels)} begin with the same token: they can't be told apart"
                    )
                ids = torch.tensor([prompt], device=model.device)
                logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1, firsts].float()
                found.append(torch.softmax(logits, dim=-1).tolist())
        return found

    def loss(self, examples: Sequence[Example]) -> float:
        """Nats a trained token."""
        whole, longest = self.recipe.sft.assistant_only_loss, self.recipe.sft.max_length
        rows = [
            cut(sequence, example, longest)
            for example in examples
            for sequence in encode(self.tokenizer, example, whole)
        ]
        return evaluate(self.adapted, rows, self.recipe, self.device)

    def load_adapter(self, folder: Path) -> None:
        """Give the adapter the weights of a saved one."""
        self.adapted.load(folder)


@torch.no_grad()
def greedy(
    adapted: Adapted, tokenizer: ChatTokenizer, chats: Sequence[Messages], max_new_tokens: int
) -> list[str]:
    """The most likely reply to each chat, without its stop token, at most `max_new_tokens` long."""
    prompts = [tokenizer.encoder.encode(chat) for chat in chats]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    replies = [""] * len(prompts)
    with _generating(adapted) as model:
        starts = range(0, len(order), TOGETHER)
        shown = len(starts) > 1 and not (adapted.shared and torch.distributed.get_rank())
        for start in tqdm(starts, desc="Answering", disable=None if shown else True, leave=False):
            chosen = order[start : start + TOGETHER]
            batch = _left_padded([prompts[number] for number in chosen], tokenizer, model.device)
            made = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(tokenizer.stop_ids),
                pad_token_id=_pad(tokenizer),
            )
            for number, ids in zip(chosen, made[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((at for at, i in enumerate(ids) if i in tokenizer.stop_ids), len(ids))
                replies[number] = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return replies


def _first_token(tokenizer: ChatTokenizer, chat: Messages, at: int, label: str) -> int:
    whole = tokenizer.encoder.encode(
        [*chat, {"role": "assistant", "content": label}], add_generation_prompt=False
    )
    return whole[at]


def _left_padded(
    prompts: Sequence[Sequence[int]], tokenizer: ChatTokenizer, device: torch.device
) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = [[_pad(tokenizer)] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _pad(tokenizer: ChatTokenizer) -> int:
    return tokenizer.pad_id if tokenizer.pad_id is not None else min(tokenizer.stop_ids)  # masked anyway


@contextmanager
def _generating(adapted: Adapted) -> Iterator[Any]:
    """The model ready to generate: with a cache, and with an attention that reads masks."""
    model: Any = adapted.base
    attention = model.config._attn_implementation
    adapted.eval()
    model.config.use_cache = True
    if attention == VARLEN:
        model.set_attn_implementation("sdpa")
    cuda = model.device.type == "cuda"
    try:
        with (
            torch.autocast(model.device.type, adapted.dtype, enabled=cuda),
            nullcontext() if cuda or adapted.shared else _decoded(model),
        ):
            yield model
    finally:
        model.config.use_cache = False
        if attention == VARLEN:
            model.set_attn_implementation(VARLEN)


@contextmanager
def _decoded(model: Any) -> Iterator[None]:
    """Have plain fp32 layers meanwhile, with the adapter in them: the same values, but no decoding for each
    token and a third of the products, which on a CPU is what takes the time. A CPU's models are small."""
    swapped = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, LoraLayer) or child.use_dora[ADAPTER]:
                continue
            layer: Any = child  # its subclasses have what follows
            if layer.get_base_layer().weight.dtype == torch.int8:
                continue  # LLM.int8() rounds what goes in, too, which no plain layer does
            weight = dequantize_module_weight(layer.get_base_layer()).to(torch.float32, copy=True)
            weight += layer.get_delta_weight(ADAPTER).float()
            plain: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            plain.weight = nn.Parameter(weight, requires_grad=False)
            plain.bias = child.get_base_layer().bias
            swapped.append((module, name, child))
            setattr(module, name, plain)
    try:
        yield
    finally:
        for module, name, child in swapped:
            setattr(module, name, child)
