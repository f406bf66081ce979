"""A run on a GPTQ base: trained, merged and converted, its adapter alone too, and asked in the chat."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from core.checkpoint import SINGLE
from core.gguf_tokenizer import read_tokens, write_tokenizer
from core.gptq import open_checkpoint
from tests.integration.asked import answers
from tests.integration.commands import run
from tests.integration.merge_bases import edit_json
from tests.integration.small_runs import SFT, write_chats
from tests.integration.test_train_gptq import ABOUT, packed_layers
from tests.integration.tiny_models import WIDTHS

TO_GGUF = "convert/to_gguf.py"
pytestmark = pytest.mark.timeout(600)
# In no order, as act-order leaves them; and not symmetrical.
LAYOUT = ABOUT | {"group_size": 64, "desc_act": True, "sym": False}


@pytest.fixture(scope="module")
def root(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's, with a run of two steps on a random base with SmolLM2's vocabulary."""
    root = tmp_path_factory.mktemp("root")
    base, tokens = root / "base", read_tokens(embedded_model)
    vocab = tokens.file.vocab
    ids: dict[str, Any] = {
        "bos_token_id": vocab.bos_id,
        "eos_token_id": vocab.eos_id,
        "pad_token_id": tokens.pad_id,
    }
    torch.manual_seed(0)
    llama: Any = LlamaForCausalLM  # untyped
    config = LlamaConfig(vocab_size=vocab.size, tie_word_embeddings=True, **{**WIDTHS, **ids})
    llama(config).half().save_pretrained(base)
    write_tokenizer(tokens, base, tokens.file.chat_template)
    save_file(packed_layers(load_file(base / SINGLE), LAYOUT), base / SINGLE, {"format": "pt"})
    edit_json(base / "config.json", quantization_config=LAYOUT)
    recipe = {
        "name": "run",
        "model": {"base_model": str(base), "license": "mit"},
        "data": {"path": str(write_chats(root / "chats.jsonl", 40)), "license": "mit"},
        "GPTQConfig": {"bits": 4},
        "LoraConfig": {"r": 4, "lora_alpha": 8},
        "SFTConfig": SFT | {"max_steps": 2, "learning_rate": 1e-2},
        "waive": ["first_loss"],
    }
    (root / "run.yaml").write_text(yaml.safe_dump(recipe))
    done = run("train/qlora.py", root / "run.yaml", "--root", root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_a_run_becomes_a_file_that_passed_its_checks_and_answers(root: Path) -> None:
    done = run(TO_GGUF, "run", "--quant", "q4", "--root", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    merge: updates    14 of 14 layers" in done.stdout
    assert all(answers(root, "run Q4_K_M", ["Hello!"], 4))


def test_its_adapter_alone_is_a_gguf_for_its_base(root: Path) -> None:
    done = run(TO_GGUF, "run", "--lora", "--root", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 of 14 layers" in done.stdout
    assert (root / "models" / "run-lora.gguf").is_file()


def test_it_was_never_nf4(root: Path) -> None:
    done = run(TO_GGUF, "run", "--quant", "q8", "--base", "nf4", "--root", root)
    assert done.returncode == 1
    assert "is a GPTQ base, which was never NF4; leave out --base nf4" in done.stderr


def test_only_biases_that_the_model_lacks_are_passed_over(root: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.bias"
    base = tmp_path / "base"
    shutil.copytree(root / "base", base)
    assert name not in open_checkpoint(base).names
    edit_json(base / "config.json", mlp_bias=True)
    assert name in open_checkpoint(base).names
    edit_json(base / "config.json", mlp_bias=False)
    tensors = load_file(base / SINGLE)
    tensors[name][0] = 1  # not made up: whoever loads the model has to say that it has no place
    save_file(tensors, base / SINGLE, {"format": "pt"})
    assert name in open_checkpoint(base).names
