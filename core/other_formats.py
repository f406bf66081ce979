"""Models in a form that isn't taken as it is: quantised, or another program's, as their files' names tell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from core.families import FAMILIES, OTHERWISE

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def other_format(names: Collection[str], name: str) -> str | None:
    """What a folder or repository with files of these names is, and what to take instead.

    None for a checkpoint as transformers saves it, and where nothing tells. `name` is how it is called.
    """

    def some(pattern: str) -> bool:
        return any(fnmatch(file, pattern) for file in names)

    weights = some("model*.safetensors")
    config = "config.json" in names
    if "model_index.json" in names and not config:
        family = FAMILIES[OTHERWISE]
        return (
            f"{name} is a pipeline of diffusers, which makes pictures or sound; take a model that writes "
            f"text, say {family.example} ({family.title})"
        )
    if "adapter_config.json" in names and not config:
        return f"{name} is an adapter; take the base that its adapter_config.json names"
    if some("consolidated*") and not (config and weights):
        return (
            f"{name} is in its maker's own form (consolidated weights, params.json), and what is needed is "
            "transformers' (config.json, model.safetensors, tokenizer.json): the same repository often has "
            f"both, else take a copy that does, or a model that does, say {FAMILIES['ministral3'].example}"
        )
    if "tekken.json" in names and not any(file in names for file in TOKENIZERS):
        return (
            f"{name} has its tokenizer as tekken.json only, Mistral's own form, and what is needed is "
            "tokenizer.json: take a copy of the model that has it, as Unsloth publishes them, or one of "
            f"Mistral's with both, say {FAMILIES['ministral3'].example}"
        )
    if some("*.gguf") and not config:
        return f"{name} holds GGUF files and no checkpoint; give one of the files, downloaded, by its path"
    return None


_BNB = re.compile(r"(-unsloth)?-bnb-[48]bit$")
# Published as FP8, with a 16-bit twin of this name; the card's `base_model` is the one before its tuning.
_MINISTRAL = re.compile(r"mistralai/Ministral-3-\d+B-Instruct-2512")
# In the YAML at the head of a card: the name alone, or the first of a list.
_BASE_MODEL = re.compile(r"^base_model:(?:[ ]*|\s*\n\s*-[ ]*)[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)
_UNTUNED = re.compile(r"(?:^|[-_])(?:base|pt)(?:$|[-_])", re.IGNORECASE)
CARD_HEAD = 20_000  # characters


def method_of(config: Mapping[str, Any]) -> str | None:
    """The method by a config.json's content, say "awq"; None for 16-bit weights.

    MLX writes `quantization`, and the same once more as `quantization_config`, without a method.
    """
    about = config.get("quantization_config") or config.get("quantization")
    if not about:
        return None
    if not isinstance(about, dict):
        return str(about)
    if about.get("load_in_4bit") or about.get("load_in_8bit"):
        return "bitsandbytes"  # transformers before 4.31 wrote no method
    unnamed = "MLX" if "quantization" in config else "by a method without a name"
    return str(about.get("quant_method") or unnamed)


def quantised_by_name(name: str) -> bool:
    """Whether a hub's model says in its name that bitsandbytes made it."""
    return bool(_BNB.search(name))


def quantised(method: str | None, name: str, folder: Path | None, why: str, give: str) -> str:
    """What to say of a model that isn't taken: `why`, and what to `give` instead, if its card tells."""
    made_from = sixteen_bit_name(name, folder)
    instead = shlex.quote(made_from) if made_from else "DIR"
    cure = f"give the 16-bit model that it was made from: {give} {instead}"
    return f"{name} is quantised ({method}), {why}; {cure}"


def sixteen_bit_name(name: str, folder: Path | None = None) -> str:
    """The hub's name of the model that a quantised one was made from; empty where nothing tells.

    By Unsloth's and Mistral's ways of naming, else as the model card in `folder` says (`base_model`). Of a
    model that was published quantised, that is the one before its tuning, which doesn't count.
    """
    if (plain := _BNB.sub("", name)) != name and not Path(name).exists():
        return plain
    if _MINISTRAL.fullmatch(name):
        return f"{name}-BF16"
    card = folder / "README.md" if folder else None
    head = card.read_text("utf-8", "replace")[:CARD_HEAD] if card and card.is_file() else ""
    found = _BASE_MODEL.search(head.partition("\n---")[0])
    made_from = found[1] if found else ""
    untuned = _UNTUNED.search(made_from.rpartition("/")[2]) and not _UNTUNED.search(Path(name).name)
    return "" if untuned else made_from
