"""Files made by hand, whole and hostile: each bad one gets a sentence, never a traceback."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from core.errors import ModelFileError
from core.gguf_model import read_gguf

U8, U16, U32, I32, BOOL, STRING, ARRAY, U64 = 0, 2, 4, 5, 7, 8, 9, 10
FORMS = {U8: "<B", U16: "<H", U32: "<I", I32: "<i", BOOL: "<?", U64: "<Q"}
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "<|im_end|>", "<tool>", "unused"]
TYPES = [2, 3, 3, 1, 1, 1, 4, 3]

MODEL: dict[str, tuple[int, Any]] = {
    "general.architecture": (STRING, "llama"),
    "general.name": (STRING, "Tiny"),
    "general.file_type": (U32, 15),
    "llama.context_length": (U32, 2048),
    "llama.block_count": (U32, 30),
    "llama.embedding_length": (U32, 576),
    "llama.attention.head_count": (U32, 9),
    "llama.attention.head_count_kv": (U32, 3),
    "tokenizer.ggml.model": (STRING, "llama"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, TOKENS)),
    "tokenizer.ggml.token_type": (ARRAY, (I32, TYPES)),
    "tokenizer.ggml.eos_token_id": (U32, 2),
    "tokenizer.chat_template": (STRING, "{{ messages }}"),
}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        inner, items = content
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, item) for item in items)
    return struct.pack(FORMS[kind], content)


def gguf(
    metadata: dict[str, tuple[int, Any]] | list[tuple[str, tuple[int, Any]]] | None = None,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    rows: int = 4,
) -> bytes:
    """One F32 tensor of 8 x `rows` elements, 32 bytes a row, after the metadata."""
    pairs = (
        list((MODEL if metadata is None else metadata).items())
        if not isinstance(metadata, list)
        else metadata
    )
    n_tensors, n_keys = counts or (1, len(pairs))
    data = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)
    for key, (kind, content) in pairs:
        data += string(key) + struct.pack("<I", kind) + value(kind, content)
    data += string("output.weight") + struct.pack("<IQQIQ", 2, 8, rows, 0, 0)
    return data + bytes(-len(data) % 32) + bytes(32 * rows)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    return str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
def test_a_whole_file_is_described(path: Path, version: int) -> None:
    path.write_bytes(gguf(version=version))
    model = read_gguf(path)
    assert (model.architecture, model.name, model.file_type) == ("llama", "Tiny", "Q4_K_M")
    assert (model.n_ctx_train, model.n_vocab, model.n_params) == (2048, 8, 32)
    assert model.chat_template == "{{ messages }}"
    assert model.kv_bytes_per_token == 30 * 3 * (64 + 64) * 2
    assert model.file_size == path.stat().st_size


def test_special_tokens_come_from_types_names_and_ids(path: Path) -> None:
    path.write_bytes(gguf())
    vocab = read_gguf(path).vocab
    assert vocab.control == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 5, "unused": 7}
    assert vocab.eog_ids == {2, 5}
    assert (vocab.bos, vocab.eos, vocab.add_bos) == ("<s>", "</s>", True)


def test_heads_may_be_given_for_each_layer(path: Path) -> None:
    heads = [0, 2] * 15  # every other layer without attention
    changes = {
        "llama.attention.head_count_kv": (ARRAY, (U32, heads)),
        "llama.attention.key_length": (U32, 32),
        "llama.attention.value_length": (U32, 16),
    }
    path.write_bytes(gguf(MODEL | changes))
    assert read_gguf(path).kv_bytes_per_token == 15 * 2 * (32 + 16) * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a GGUF model but an empty file"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer; run 'git lfs pull'"),
        (struct.pack("<Q", 90) + json.dumps({"a": {}}).encode(), "a safetensors file; convert it first"),
        (b"PK\x03\x04archive", "a zip archive"),
        (b"\x80\x02}q\x00.", "a Python pickle"),
        (b"Hello, world", "it begins with b'Hello, w'"),
        (b"GGUF", "it ends inside its own header"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1; this app reads versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian file"),
    ],
)
def test_what_is_no_gguf_is_named(path: Path, content: bytes, message: str) -> None:
    assert message in refusal(path, content)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"there is no file '.*nothing\.gguf'"):
        read_gguf(tmp_path / "nothing.gguf")
    with pytest.raises(ModelFileError, match="is a folder"):
        read_gguf(tmp_path)


def test_a_file_cut_short_says_how_much_is_there(path: Path) -> None:
    whole = gguf(rows=1_000_000)
    assert refusal(path, whole[:12_000_000]) == (
        "tiny.gguf is cut short: 12.0 MB of 32.0 MB; download it again"
    )
    assert "cut short" in refusal(path, whole[: len(whole) - 1])


def test_every_cut_through_the_header_is_noticed(path: Path) -> None:
    whole = gguf()
    for end in range(4, len(whole), 7):
        assert "tiny.gguf is cut short" in refusal(path, whole[:end])


def test_flipped_bytes_give_a_model_or_a_sentence(path: Path) -> None:
    draw = random.Random(0)
    whole = gguf()
    for _ in range(1000):
        broken = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(4, len(whole))] = draw.randrange(256)
        path.write_bytes(broken)
        with contextlib.suppress(ModelFileError):  # any other exception fails the test
            read_gguf(path)


@pytest.mark.parametrize("counts", [(2**63, 1), (1, 2**63), (2**64 - 1, 2**64 - 1), (70_000, 1)])
def test_absurd_counts_are_refused_at_once(path: Path, counts: tuple[int, int]) -> None:
    assert "its header announces" in refusal(path, gguf(counts=counts))


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (STRING, struct.pack("<Q", 2**63), "it ends inside its own header"),
        (ARRAY, struct.pack("<IQ", STRING, 2**62), "announces 4611686018427387904 entries"),
        (ARRAY, struct.pack("<IQ", U64, 2**61), "it ends inside its own header"),
        (ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000, "the list 'bad' has the unknown type 9"),
        (99, b"", "the key 'bad' has the unknown type 99"),
    ],
)
def test_lying_lengths_are_refused_at_once(path: Path, kind: int, content: bytes, message: str) -> None:
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("bad") + struct.pack("<I", kind) + content
    begun = time.perf_counter()
    assert message in refusal(path, start + bytes(64))
    assert time.perf_counter() - begun < 1


def test_a_header_larger_than_any_real_one_is_not_read_into_memory(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("bad") + struct.pack("<IQ", STRING, 2**38))
        file.truncate(2**39)  # sparse
    with pytest.raises(ModelFileError, match="its header is longer than 256 MiB"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.type": (STRING, "adapter")}, "is a LoRA adapter"),
        ({"general.architecture": (STRING, "clip")}, "is the image part of a model"),
        ({"general.architecture": (STRING, "bert")}, "can't chat"),
        ({"general.architecture": (STRING, "")}, "it has no architecture"),
        ({"tokenizer.ggml.tokens": (ARRAY, (STRING, []))}, "it has no vocabulary"),
        ({"tokenizer.ggml.tokens": (ARRAY, (U32, [1]))}, "it has no vocabulary"),
        (
            {"tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "b", "a"]))},
            "the token 'a' is in the vocabulary twice",
        ),
        ({"tokenizer.ggml.token_type": (ARRAY, (I32, [1]))}, "token types doesn't match"),
        ({"tokenizer.ggml.token_type": (STRING, "x")}, "token types doesn't match"),
        ({"llama.context_length": (STRING, "long")}, "llama.context_length is 'long', not a count"),
        ({"general.alignment": (U32, 48)}, "its alignment 48 is not a power of two"),
    ],
)
def test_files_that_cannot_chat_say_why(path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(path, gguf(MODEL | changes))


def test_a_key_that_is_there_twice_is_refused(path: Path) -> None:
    pairs = [*MODEL.items(), ("general.name", (STRING, "Other"))]
    assert "the key 'general.name' is there twice" in refusal(path, gguf(pairs))


def test_bytes_that_are_not_utf8_do_no_harm(path: Path) -> None:
    changes = {
        "general.name": (STRING, b"\xff\xfe"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, [b"\xff", b"\xfe", *TOKENS[2:]])),
    }
    path.write_bytes(gguf(MODEL | changes))
    model = read_gguf(path)
    assert model.name == "\\xff\\xfe"
    assert model.vocab.control["\\xff"] == 0
