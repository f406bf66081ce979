"""An adapter that also trains the vision tower of its base: what is left out of the text model is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Gemma3Config

from convert.adapter import Adapter
from convert.merge import MergePlan
from core.errors import ConvertError
from core.gptq import open_checkpoint
from tests.integration.family_models import EYES, GEMMA_TEXT
from tests.integration.tiny_models import lora

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 with eyes, without a tokenizer."""
    text = GEMMA_TEXT | {"vocab_size": 64, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    eyes = EYES | {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text,
        vision_config=eyes,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    )
    folder = tmp_path_factory.mktemp("whole") / "base"
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """What PEFT writes for the whole model with the layers' names alone: both parts have a q_proj."""
    return lora(base, base.parent / "adapter", auto=AutoModelForImageTextToText, target_modules=["q_proj"])


def test_what_is_of_another_part_is_left_out_with_a_count(base: Path, adapter: Path) -> None:
    update = Adapter(adapter)
    MergePlan(open_checkpoint(base), update)
    assert len(update.low_rank) == 4  # a layer's one, of the text model
    (line,) = update.notes()
    assert line.startswith("note: 2 of the tensors that the adapter changes are of other parts")
    assert "vision_tower" in line


def test_an_adapter_of_another_part_alone_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    seeing = shutil.copytree(adapter, tmp_path / "seeing")
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "vision" in name}, seeing / WEIGHTS)
    with pytest.raises(ConvertError, match="changes only other parts than the text model"):
        MergePlan(open_checkpoint(base), Adapter(seeing))


def test_an_adapter_of_the_text_model_has_no_note(base: Path, adapter: Path, tmp_path: Path) -> None:
    writing = shutil.copytree(adapter, tmp_path / "writing")
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "vision" not in name}, writing / WEIGHTS)
    update = Adapter(writing)
    MergePlan(open_checkpoint(base), update)
    assert update.notes() == []
