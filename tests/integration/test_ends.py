"""llama.cpp's converter and llama.cpp itself: a GGUF begins and ends as its checkpoint says."""

from __future__ import annotations

import json
from pathlib import Path

import llama_cpp
import pytest
from transformers import AutoTokenizer

from convert.quantise import convert_checkpoint, quantise
from convert.verify.run import chat_model
from core.gguf_model import read_gguf
from core.gguf_tokenizer import read_tokens, write_tokenizer
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


def test_the_chat_composes_accents_where_the_tokenizer_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny("llama", tmp_path / "model")
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["normalizers"].insert(0, {"type": "NFC"})
    path.write_text(json.dumps(content))
    text = "Cafe\u0301 na\u0308chster Halt"
    wanted = AutoTokenizer.from_pretrained(model).encode(text, add_special_tokens=False)
    made, small = tmp_path / "made.gguf", tmp_path / "small.gguf"
    convert_checkpoint(model, made, "f16", "Tiny", lambda *_: None)
    assert "the form NFC" in capsys.readouterr().out
    quantise(made, small, "Q8_0", None, lambda *_: None)
    with chat_model(small) as loaded:
        assert loaded.engine.tokenize(text, True) != wanted  # what llama.cpp makes of it
        assert loaded.encoder.tokenize(text, True) == wanted
    again = tmp_path / "again"
    again.mkdir()
    write_tokenizer(read_tokens(small), again, None)
    assert AutoTokenizer.from_pretrained(again).encode(text, add_special_tokens=False) == wanted
