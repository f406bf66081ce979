"""llama.cpp's converter and llama.cpp itself: a GGUF begins and ends as its checkpoint says."""

from __future__ import annotations

import json
from pathlib import Path

import llama_cpp
from transformers import AutoTokenizer

from chat.gguf_file import read_gguf
from convert.quantise import convert_checkpoint
from tests.integration.tiny_models import tiny

UNKNOWN, BOS, EOS = 0, 1, 2


def test_what_the_converter_reads_otherwise_is_put_right(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    path = model / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": True}))
    generation = model / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [EOS, UNKNOWN]}))
    begins = AutoTokenizer.from_pretrained(model)("x")["input_ids"][0] == BOS
    made = tmp_path / "made.gguf"
    convert_checkpoint(model, made, "f16", "Tiny", lambda *_: None)
    assert read_gguf(made).vocab.add_bos == begins
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(str(made).encode(), parameters)
    vocab = llama_cpp.llama_model_get_vocab(loaded)
    assert llama_cpp.llama_vocab_get_add_bos(vocab) == begins
    assert [i for i in range(9) if llama_cpp.llama_vocab_is_eog(vocab, i)] == [UNKNOWN, EOS]
    llama_cpp.llama_model_free(loaded)
    assert [path.name for path in tmp_path.iterdir()] in (["model", "made.gguf"], ["made.gguf", "model"])
