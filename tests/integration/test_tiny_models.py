"""llama.cpp's converter takes the tiny checkpoints, and what it writes comes back the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from convert.verify.tokens import NASTY
from core.from_gguf import checkpoint_from_gguf
from core.gguf_model import read_gguf
from tests.integration.converting import convert
from tests.integration.tiny_models import FAMILIES, is_there, lora, tiny, tokenizer_of, vocabulary

NAMES = {"phi3": "tiny Phi-3"}  # llama.cpp goes by the name
# What a configuration says about the mathematics; the rest (initialisation, caching) no GGUF has.
MATHEMATICS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("max_position_embeddings", "original_max_position_embeddings", "rms_norm_eps", "vocab_size"),
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "sliding_window"),
    *("layer_types", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
    "rope_parameters",
)


Pair = tuple[Path, Path]  # a tiny checkpoint, and the GGUF that llama.cpp's converter makes of it


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Of each family whose vocabulary is there."""
    root = tmp_path_factory.mktemp("tiny")
    made = {name: (root / name / "tiny", root / f"{name}.gguf") for name in FAMILIES if is_there(name)}
    for name, (checkpoint, _) in made.items():
        tiny(name, checkpoint)
    convert("bf16", ((*pair, NAMES.get(name, "tiny")) for name, pair in made.items()))
    return made


@pytest.fixture
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs.get(request.param) or pytest.skip(f"no vocabulary of {request.param}; run: make test")


@pytest.mark.parametrize("pair", FAMILIES, indirect=True)
def test_the_converter_takes_it(pair: Pair) -> None:
    checkpoint, written = pair
    file, config = read_gguf(written), json.loads((checkpoint / "config.json").read_text())
    assert file.vocab.size == config["vocab_size"]
    assert (file.vocab.bos_id, file.vocab.eos_id) == (config["bos_token_id"], config["eos_token_id"])
    assert file.file_type == "BF16"
    template = checkpoint / "chat_template.jinja"
    assert (file.chat_template or "") == (template.read_text() if template.exists() else "")


# Mistral is Llama to llama.cpp, and a real Gemma 3 comes back in test_from_gguf.py.
@pytest.mark.parametrize("pair", ["phi3", "llama", "gemma2"], indirect=True)
def test_it_comes_back_the_same(pair: Pair, tmp_path: Path) -> None:
    checkpoint, written = pair
    ids = tokenizer_of(checkpoint)
    with vocabulary(written) as tokenize:
        assert [text for text in NASTY if ids(text) != tokenize(text, True)] == []

    again = tmp_path / "again"
    checkpoint_from_gguf(written, again)
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, again))
    assert before.keys() == after.keys()
    assert [name for name in before if not before[name].equal(after[name])] == []
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (checkpoint, again))
    assert {key: now.get(key) for key in MATHEMATICS} == {key: was.get(key) for key in MATHEMATICS}
    was, now = (json.loads((folder / "generation_config.json").read_text()) for folder in (checkpoint, again))
    assert set(now["eos_token_id"]) == set(was["eos_token_id"]) == read_gguf(written).vocab.eog_ids


def test_an_adapter_changes_the_model_and_is_the_same_each_time(tmp_path: Path) -> None:
    checkpoint = tiny("llama", tmp_path / "tiny")
    adapters = [lora(checkpoint, tmp_path / name, use_rslora=True) for name in ("one", "two")]
    one, two = (load_file(adapter / "adapter_model.safetensors") for adapter in adapters)
    assert len(one) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
    assert all(weight.abs().max() > 0 for weight in one.values())
    assert [name for name in one if not one[name].equal(two[name])] == []
    config = json.loads((adapters[0] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(checkpoint)
    assert config["use_rslora"]
