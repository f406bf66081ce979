"""What the model answers, before and after training: greedy replies and the probabilities of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from tqdm import tqdm

from core.errors import TrainError
from core.prompt import Messages
from core.tokenizer import ChatTokenizer
from train.attention import VARLEN
from train.model import ADAPTER, Adapted

TOGETHER = 32  # chats in a batch


@torch.no_grad()
def greedy(
    adapted: Adapted, tokenizer: ChatTokenizer, chats: Sequence[Messages], max_new_tokens: int | Sequence[int]
) -> list[str]:
    """The most likely reply to each chat, without its stop token, at most `max_new_tokens` long.

    Chats may each have a limit of their own.
    """
    limits = [max_new_tokens] * len(chats) if isinstance(max_new_tokens, int) else max_new_tokens
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
                max_new_tokens=max(limits[number] for number in chosen),
                do_sample=False,
                eos_token_id=sorted(tokenizer.stop_ids),
                pad_token_id=_pad(tokenizer),
            )
            for number, ids in zip(chosen, made[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((at for at, i in enumerate(ids) if i in tokenizer.stop_ids), len(ids))
                ids = ids[: min(end, limits[number])]
                replies[number] = tokenizer.decode(ids, skip_special_tokens=True)
    return replies


@torch.no_grad()
def label_probabilities(
    adapted: Adapted, tokenizer: ChatTokenizer, chats: Sequence[Messages], labels: Sequence[str]
) -> list[list[float]]:
    """For each chat the probability of each label as the reply, by its first token; they add up to 1.

    Raises TrainError if two labels begin with the same token.
    """
    prompts = [tokenizer.encoder.encode(chat) for chat in chats]
    firsts = [
        [_first_token(tokenizer, chat, len(prompt), label) for label in labels]
        for chat, prompt in zip(chats, prompts, strict=True)
    ]
    if any(len(set(ids)) < len(labels) for ids in firsts):
        raise TrainError(f"the labels {list(labels)} begin with the same token: they can't be told apart")
    found: list[list[float]] = []
    with _generating(adapted) as model:
        for start in range(0, len(chats), TOGETHER):
            batch = _left_padded(prompts[start : start + TOGETHER], tokenizer, model.device)
            places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
            said = model(**batch, position_ids=places, logits_to_keep=1, use_cache=False).logits[:, -1]
            chosen = torch.tensor(firsts[start : start + TOGETHER], device=said.device)
            found += torch.softmax(said.gather(1, chosen).float(), dim=-1).tolist()
    return found


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
