"""Families from rows to chat: trained, merged, converted; the chat's engine says what PEFT says."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from convert.ends import mend
from convert.merge import merge
from convert.preflight import model_name
from convert.verify.tokens import NASTY
from core.gguf_model import read_gguf
from core.gguf_vocab import in_form
from core.llama import LlamaModel
from tests.integration.converting import convert
from tests.integration.family_models import SMALL, small
from tests.integration.small_runs import chats, recipe_of
from tests.integration.tiny_models import vocabulary
from train.batches import collate
from train.examples import Example
from train.labels import encode
from train.model import Adapted
from train.session import Base

CPU = torch.device("cpu")
STEPS = 3
COMPOSED = ("Qwen2.5", "Qwen3", "Qwen3-VL", "SmolLM3")  # their vocabulary's tokenizer composes accents

Made = dict[str, Path]  # by family, a folder with base/, adapter/, merged/ and model.gguf


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All families, trained for a few steps and converted in one go."""
    root = tmp_path_factory.mktemp("families")
    folders = {name: root / name for name in SMALL}
    for name, folder in folders.items():
        small(name, folder / "base")
        _train(folder)
        merge(folder / "base", folder / "adapter", folder / "merged", lambda done, total: None)
    made = [(f / "merged", f / "model.gguf", model_name(f / "base", "run")) for f in folders.values()]
    convert("f16", made)
    for folder in folders.values():
        mend(folder / "model.gguf", folder / "merged")
    return folders


def _train(folder: Path) -> None:
    """A few steps with the product's own model, loss and adapter, without a run around them."""
    recipe = recipe_of(folder / "base", folder / "none.jsonl")
    base = Base(recipe)
    adapted = Adapted(base.load(recipe, CPU), recipe, CPU)
    batch = collate([row for chat in chats(2) for row in encode(base.tokenizer, Example(chat, "", ""))])
    optimizer = torch.optim.SGD(adapted.parameters_to_train(), lr=1.0)
    for _ in range(STEPS):
        loss = adapted(batch) / batch.trained
        loss.backward()
        for parameter in adapted.parameters_to_train():  # a step that is felt, whatever the gradient's size
            assert parameter.grad is not None
            parameter.grad *= 0.5 / (parameter.grad.norm() + 1e-12)
        optimizer.step()
        optimizer.zero_grad()
    adapted.save(folder / "adapter")


def as_published(name: str, base: Path) -> Any:
    """The base as everybody loads it, with all of its parts, in fp32."""
    auto: Any = AutoModelForImageTextToText if SMALL[name].sees else AutoModelForCausalLM
    return auto.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


@cache
def _tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    return found


@pytest.mark.timeout(600)  # the first one makes all of them
@pytest.mark.parametrize("name", SMALL)
def test_the_chat_says_what_training_and_peft_say(name: str, made: Made) -> None:
    folder = made[name]
    tokenizer = _tokenizer(folder / "base")
    ids = tokenizer.encode("Red fox, blue dog, green river, 12 stones and a white house. " * 3)
    model = as_published(name, folder / "base")
    before = _logits(model, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of an adapter's keys that the model has no place for
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = PeftModel.from_pretrained(model, folder / "adapter").eval()
    wanted = _logits(adapted, ids)
    engine = LlamaModel(folder / "model.gguf", 256, 1, [])
    try:
        rows = engine.logits(ids, set(range(len(ids))))
        got = np.stack([np.ctypeslib.as_array(logits).copy() for _, logits in rows])
    finally:
        engine.close()
    width = min(got.shape[1], wanted.shape[1])  # Gemma's converter drops rows beyond the vocabulary
    wanted, before = wanted[:, :width], before[:, :width]
    changed = np.linalg.norm(wanted - before)
    assert changed > 0.1 * np.linalg.norm(before)  # the adapter does something
    # Rounding to 16 bit gave 0.0004 to 0.0034 of what the adapter changes.
    assert np.linalg.norm(got[:, :width] - wanted) < 0.005 * changed


@pytest.mark.parametrize("name", SMALL)
def test_text_has_the_same_ids(name: str, made: Made) -> None:
    tokenizer, gguf = _tokenizer(made[name] / "base"), read_gguf(made[name] / "model.gguf")
    assert gguf.unicode_form == ("NFC" if name in COMPOSED else "")
    with vocabulary(gguf.path) as plain:
        tokenize = in_form(plain, gguf.unicode_form, gguf.vocab.control)  # as the chat does
        wrong = [t for t in NASTY if tokenizer.encode(t, add_special_tokens=False) != tokenize(t, True)]
    assert wrong == []
