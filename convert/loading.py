"""Whether config.json and the files of a checkpoint agree: asked of transformers itself.

It loads names and sizes onto the `meta` device, so that no values are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from typing import Any

import gguf
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.utils import logging

from core.checkpoint import Checkpoint
from core.errors import ConvertError
from core.files import read_json

# gguf-py's name of an architecture, where it isn't transformers' model_type.
ARCHITECTURES = {"cohere": "command-r"}
_LAYER = re.compile(r".*?\.(\d+)\.")


def ties_head(checkpoint: Checkpoint) -> bool:
    """Whether transformers would tie the head of this checkpoint to its embedding, unless the files differ.

    Raises ConvertError where transformers would make up a tensor or leave one out: config.json and the files
    describe two models, and nobody can tell which of them was meant.
    """
    config = checkpoint.config
    where = checkpoint.folder / "config.json"
    model, about = _load(checkpoint)
    rows = next((found for name, found, _ in about["mismatched_keys"] if "embed" in name), None)
    if rows:
        said = config.get("text_config", config).get("vocab_size")
        raise ConvertError(
            f"{where} says vocab_size {said}, but its embedding has {rows[0]} rows; get the base again"
        )
    for name, found, wanted in sorted(about["mismatched_keys"]):
        raise ConvertError(
            f"{where} describes a {name} of {_by(wanted)}, and the file holds one of {_by(found)}; "
            "get the base again"
        )
    if head := next((name for name in about["missing_keys"] if name.endswith("lm_head.weight")), None):
        raise ConvertError(
            f"{where} says tie_word_embeddings {bool(getattr(model.config, 'tie_word_embeddings', False))}, "
            f"but no file beside it holds {head}; get the base again"
        )
    if about["missing_keys"]:
        raise ConvertError(
            f"{where} describes a model with {_some(about['missing_keys'])}, which is in no file beside it"
            f"{_layers(checkpoint)}; get the base again"
        )
    if about["unexpected_keys"]:
        raise ConvertError(
            f"{where} describes a model without {_some(about['unexpected_keys'])}, which its files hold"
            f"{_layers(checkpoint)}; get the base again"
        )
    embedding: Any = model.get_input_embeddings()
    _check_stops(checkpoint, len(embedding.weight))
    return bool(model.all_tied_weights_keys)


def _check_stops(checkpoint: Checkpoint, rows: int) -> None:
    """An end of reply beyond the embedding can never be written: such a file is another model's."""
    config, path = checkpoint.config, checkpoint.folder / "generation_config.json"
    places = [(path, read_json(path) if path.is_file() else {})]
    places += [(path.with_name("config.json"), about) for about in (config, config.get("text_config") or {})]
    for where, about in places:
        found = about.get("eos_token_id")
        for stop in found if isinstance(found, list) else [found]:
            if stop is not None and (not isinstance(stop, int) or not 0 <= stop < rows):
                raise ConvertError(
                    f"{where} says that a reply ends with eos_token_id {stop!r}, and the embedding has "
                    f"{rows} rows; get the base again"
                )


def has_own_head(model_type: str) -> bool:
    """Whether a GGUF of this kind has a place for a head that isn't the embedding (gguf-py's tables)."""
    name = ARCHITECTURES.get(model_type, model_type)
    kinds = [kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == name]
    return not kinds or gguf.MODEL_TENSOR.OUTPUT in gguf.MODEL_TENSORS[kinds[0]]


def _load(checkpoint: Checkpoint) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model as transformers would load it, without values, and its report. Raises ConvertError."""
    where, kind = checkpoint.folder / "config.json", str(checkpoint.config.get("model_type"))
    shapes = {name: torch.empty(checkpoint.shape(name), device="meta") for name in checkpoint.names}
    try:
        config = CONFIG_MAPPING[kind].from_dict(checkpoint.config)
        factory: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise ConvertError(
            f"{where}: transformers knows no language model of model_type {kind!r} without running code"
        ) from None
    except (StrictDataclassError, ValueError, TypeError, AttributeError) as error:
        raise _broken(checkpoint, error) from None
    try:
        with _quiet():
            loaded: tuple[PreTrainedModel, dict[str, Any]] = factory.from_pretrained(
                None,
                config=config,
                state_dict=shapes,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            return loaded
    except (ValueError, TypeError, AttributeError, RuntimeError, KeyError, ZeroDivisionError) as error:
        raise _broken(checkpoint, error) from None


def _broken(checkpoint: Checkpoint, error: Exception) -> ConvertError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConvertError(f"{checkpoint.folder / 'config.json'} describes no model: {reason[:300]}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report, which a sentence replaces, and its bar."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _layers(checkpoint: Checkpoint) -> str:
    """The number of layers on both sides, where they differ."""
    config: Mapping[str, Any] = checkpoint.config.get("text_config") or checkpoint.config
    said = config.get("num_hidden_layers")
    found = [int(match[1]) for name in checkpoint.names if (match := _LAYER.match(name))]
    held = max(found, default=-1) + 1
    return f" (num_hidden_layers {said}; the files hold {held})" if said != held else ""


def _some(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
