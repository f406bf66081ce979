"""Which token pads, what is special, and which tokenizers are refused: on vocabularies of a few tokens."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from core.errors import ConvertError
from core.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, read_tokens, write_tokenizer

LETTERS = [*"abcd", "ab", "Ġ", "Ġab"]


def write_vocabulary(path: Path, model: str, pre: str, tokens: dict[str, int], **ids: int) -> Path:
    """Write a GGUF without weights; `ids` are bos, eos, padding."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(tokens.values()))
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    if model == "gpt2":
        writer.add_token_merges(["a b", "Ġ ab"])
    for name, token in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_level(*control: str) -> dict[str, int]:
    return dict.fromkeys(control, CONTROL) | dict.fromkeys(LETTERS, NORMAL)


@pytest.mark.parametrize(
    ("control", "given", "pad"),
    [
        (("<|im_start|>", "<|im_end|>", "<pad>"), 2, 2),
        (("<|im_start|>", "<|im_end|>", "<spare>"), 1, 2),  # SmolLM2's own padding ends the reply
        (("<|im_start|>", "<|im_end|>"), 1, None),
    ],
)
def test_padding_is_never_a_stop_token_nor_the_first(
    tmp_path: Path, control: tuple[str, ...], given: int, pad: int | None
) -> None:
    path = write_vocabulary(
        tmp_path / "v.gguf", "gpt2", "smollm", byte_level(*control), bos=0, eos=1, padding=given
    )
    assert read_tokens(path).pad_id == pad


def test_control_tokens_are_special_and_user_defined_ones_are_cut_out_but_shown(tmp_path: Path) -> None:
    vocabulary = byte_level("<|im_start|>", "<|im_end|>") | {"<think>": USER_DEFINED}
    path = write_vocabulary(tmp_path / "v.gguf", "gpt2", "smollm", vocabulary, bos=0, eos=1)
    write_tokenizer(read_tokens(path), tmp_path, "{{ messages }}")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("<|im_start|>ab ab<think>d").ids
    assert [tokenizer.id_to_token(i) for i in ids] == ["<|im_start|>", "ab", "Ġab", "<think>", "d"]
    assert tokenizer.decode(ids) == "ab ab<think>d"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert not (tmp_path / "tokenizer.model").exists()
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_sentencepiece_vocabulary_merges_by_score_and_falls_back_to_bytes(tmp_path: Path) -> None:
    vocabulary = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    vocabulary |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    vocabulary |= dict.fromkeys(["bc", "ab", "\u2581", "a", "b", "c"], NORMAL)  # bc scores higher than ab
    path = write_vocabulary(tmp_path / "v.gguf", "llama", "default", vocabulary, bos=1, eos=2)
    write_tokenizer(read_tokens(path), tmp_path, None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("abcab z").tokens == ["<s>", "\u2581", "a", "bc", "ab", "\u2581", "<0x7A>"]
    assert tokenizer.decode(tokenizer.encode("abc z").ids) == "abc z"

    pieces = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert pieces.encode("abcab z") == tokenizer.encode("abcab z").ids[1:]


@pytest.mark.parametrize(
    ("model", "pre", "named"), [("gpt2", "tekken", "'tekken'"), ("bert", "default", "'bert'")]
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused_by_name(
    tmp_path: Path, model: str, pre: str, named: str
) -> None:
    path = write_vocabulary(tmp_path / "v.gguf", model, pre, byte_level("<s>", "</s>"), bos=0, eos=1)
    with pytest.raises(ConvertError, match=named):
        read_tokens(path)
