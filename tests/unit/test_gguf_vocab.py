"""llama.cpp's answers on a vocabulary, and what is said when it has none: hostile files end a child only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core import gguf_vocab
from core.errors import ModelFileError
from core.gguf_model import read_gguf
from core.gguf_vocab import asking, read_vocab
from tests.unit.test_gguf_file import ARRAY, I32, MODEL, STRING, U32, gguf

pytest.importorskip("llama_cpp")


def written(folder: Path, **changes: tuple[int, object]) -> Path:
    path = folder / "tiny.gguf"
    path.write_bytes(gguf(MODEL | {key.replace("__", "."): value for key, value in changes.items()}))
    return path


def test_marks_that_llama_cpp_finds_in_plain_text_are_control(tmp_path: Path) -> None:
    """gpt-oss ends messages, not replies, with <|end|>; its marks and a template's are user-defined."""
    tokens = ["<|return|>", "<|call|>", "<|end|>", "<|constrain|>", "[USER]", "[other]", "<think>", "<unk>"]
    path = written(
        tmp_path,
        tokenizer__ggml__tokens=(ARRAY, (STRING, tokens)),
        tokenizer__ggml__token_type=(ARRAY, (I32, [3, 3, 3, 3, 4, 4, 4, 2])),
        tokenizer__ggml__eos_token_id=(U32, 0),
        tokenizer__ggml__bos_token_id=(U32, 99),
        tokenizer__chat_template=(STRING, "[USER]{{ messages }}<think>"),
    )
    vocab = read_gguf(path).vocab
    assert vocab.eog_ids == {0, 1}
    assert vocab.control == {text: i for i, text in enumerate(tokens) if text not in ("[other]", "<think>")}


def test_an_answer_is_kept_as_long_as_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    first = read_vocab(path, "")
    started = list[list[str]]()
    worker = gguf_vocab.worker
    monkeypatch.setattr(gguf_vocab, "worker", lambda words: started.append(words) or worker(words))
    assert read_vocab(path, "") is first
    assert not started
    written(tmp_path, tokenizer__ggml__eos_token_id=(U32, 7))
    assert (read_vocab(path, "").eos_id, first.eos_id, len(started)) == (7, 2, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer__ggml__model": (STRING, "gpt2")}, "cannot find tokenizer merges in model file"),
        ({"general__architecture": (STRING, "zzz")}, "unknown model architecture: 'zzz'"),
        (
            {"tokenizer__ggml__model": (STRING, "none"), "llama__vocab_size": (U32, 8)},
            r"llama-vocab.cpp:\d+: GGML_ASSERT\(type != LLAMA_VOCAB_TYPE_NONE\) failed",
        ),
        (
            {"tokenizer__ggml__model": (STRING, "none"), "llama__vocab_size": (U32, 2**32 - 1)},
            "the memory is too small: .*bad_alloc",
        ),
    ],
    ids=["refused", "unknown", "abort", "160 GB"],
)
def test_what_llama_cpp_gives_up_on_has_its_reason(
    tmp_path: Path, changes: dict[str, tuple[int, object]], reason: str
) -> None:
    file = read_gguf(written(tmp_path, **changes))
    with pytest.raises(ModelFileError, match=rf"tiny\.gguf could not be loaded: {reason}"):
        _ = file.vocab


def test_a_file_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pipe.gguf"
    os.mkfifo(path)
    monkeypatch.setattr(gguf_vocab, "LIMIT_S", 1.0)
    with pytest.raises(ModelFileError, match=r"pipe\.gguf .*: llama\.cpp took longer than 1 seconds"):
        read_vocab(path, "")


def test_nobody_waits_for_an_answer_that_is_not_wanted(tmp_path: Path) -> None:
    path = tmp_path / "pipe.gguf"
    os.mkfifo(path)
    with asking(path, ""):
        pass
