"""What a merge carries over beside the weights: config, stop tokens, tokenizer, chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.merge_bases import edit_json, merged, save_adapter, save_base, save_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base("phi3", tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter", target_modules=["qkv_proj"])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_merged_checkpoint_loads_and_asks_for_no_code(base: Path, adapter: Path, tmp_path: Path) -> None:
    code = {"auto_map": {"AutoConfig": "somebody/else--configuration.Evil"}}
    edit_json(base / "config.json", torch_dtype="bfloat16", **code)
    edit_json(base / "tokenizer_config.json", **code)
    (base / "configuration.py").write_text("raise SystemExit")
    out = merged(base, adapter, tmp_path / "out")
    config = read(out / "config.json")
    assert config["dtype"] == "bfloat16"
    assert not {"auto_map", "torch_dtype", "quantization_config"} & config.keys()
    assert "auto_map" not in read(out / "tokenizer_config.json")
    assert not list(out.glob("*.py"))
    AutoModelForCausalLM.from_pretrained(out)
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(out)
    assert after.encode("word7 word9") == before.encode("word7 word9")
    assert after.chat_template == before.chat_template


def test_all_stop_tokens_are_in_the_generation_config(base: Path, adapter: Path, tmp_path: Path) -> None:
    edit_json(base / "config.json", eos_token_id=[7, 9])
    edit_json(base / "generation_config.json", eos_token_id=9, temperature=0.5, do_sample=True)
    generation = read(merged(base, adapter, tmp_path / "out") / "generation_config.json")
    assert generation["eos_token_id"] == [9, 7, 3, 2]  # 3 is <|end|> and 2 the eos_token of the template
    assert generation["temperature"] == 0.5


def test_a_base_without_generation_config_gets_one(base: Path, adapter: Path, tmp_path: Path) -> None:
    (base / "generation_config.json").unlink()
    assert read(merged(base, adapter, tmp_path / "out") / "generation_config.json") == {
        "eos_token_id": [2, 3]
    }


def test_the_adapters_own_tokenizer_and_template_win(base: Path, adapter: Path, tmp_path: Path) -> None:
    save_tokenizer(adapter, extra=("<new>",))
    (adapter / "chat_template.jinja").write_text("other")
    edit_json(adapter / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    edit_json(base / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    (base / "special_tokens_map.json").write_text("{}")
    out = merged(base, adapter, tmp_path / "out")
    assert (out / "chat_template.jinja").read_text() == "other"
    assert "<new>" in (out / "tokenizer.json").read_text()
    assert not (out / "special_tokens_map.json").exists()
    assert (out / "tokenizer.model").read_bytes() == b"of the base"
    assert read(out / "tokenizer_config.json")["tokenizer_class"] == "LlamaTokenizer"


def test_tokenizer_model_may_come_with_the_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.move(base / "tokenizer.model", adapter / "tokenizer.model")
    assert (merged(base, adapter, tmp_path / "out") / "tokenizer.model").is_file()
