"""Models in a form that is neither trained nor converted here, known by the names of their files alone."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch

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
