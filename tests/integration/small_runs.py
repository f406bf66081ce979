"""Small recipes on small models, for the tests of training: rows, recipes, and a base that isn't random."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from core.tokenizer import ChatTokenizer
from tests.integration.tiny_models import tiny
from train.batches import IGNORED, collate
from train.examples import Example
from train.labels import encode
from train.recipe import Recipe, parse

COLOURS = ("red", "blue", "green", "black", "white", "grey")
THINGS = ("fox", "dog", "house", "river", "tree", "stone")
SFT = {
    "max_length": 128,
    "per_device_train_batch_size": 1,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "gradient_checkpointing": "none",
    "max_steps": 4,
    "eval_steps": 2,
}
NF4 = {"load_in_4bit": True}


def chats(count: int, seed: int = 0, reply: str = "") -> list[list[dict[str, str]]]:
    """Chats of one turn, all different; each answers what was asked the other way round, or `reply`."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        words = [word for _ in range(3) for word in (chance.choice(COLOURS), chance.choice(THINGS))]
        words.append(str(number))
        turns = [("user", " ".join(words)), ("assistant", reply or " ".join(reversed(words)))]
        found.append([{"role": role, "content": content} for role, content in turns])
    return found


def write_chats(path: Path, count: int = 60) -> Path:
    """Write a JSONL file of `chats`."""
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats(count)))
    return path


def recipe_of(base: Path, data: Path, /, **sections: Any) -> Recipe:
    """A recipe named run on a random base; `sft`, `lora` and `data` add to ours, others replace it."""
    content: dict[str, Any] = {
        "name": sections.pop("name", "run"),
        "model": {"base_model": str(base), "license": "mit"},
        "data": {"path": str(data), "license": "mit"} | sections.pop("data", {}),
        "LoraConfig": {"r": 4, "lora_alpha": 8} | sections.pop("lora", {}),
        "SFTConfig": SFT | sections.pop("sft", {}),
        "waive": ["first_loss"],
    }
    return parse(content | sections, "test")


def learned(base: Path, rows: Sequence[list[dict[str, str]]], steps: int) -> Path:
    """Train all of the random model in `base` on the chats, in place, so that it isn't random any more."""
    tokenizer = ChatTokenizer(base)
    batch = collate([part for chat in rows for part in encode(tokenizer, Example(chat, "", ""))])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0], batch.labels[0], ignore_index=IGNORED)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).save_pretrained(base)
    return base


def small_phi3(folder: Path, **options: Any) -> Path:
    """A random Phi-3, 64 wide: its template and vocabulary are real, and its tokenizer is quickly made."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    widths = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.2}
    return tiny("phi3", folder, rope_parameters=rope, **widths, **options)


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's adapter."""
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def metrics_of(folder: Path, *keys: str) -> list[tuple[Any, ...]]:
    """These keys of each line of metrics.jsonl; None where a line hasn't one."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [tuple(line.get(key) for key in keys) for line in map(json.loads, lines)]
