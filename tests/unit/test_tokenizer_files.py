"""Where a merged checkpoint's tokenizer comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from convert.preflight import model_name
from convert.sentencepiece_file import rebuild
from convert.tokenizer_files import TokenizerFiles, to_convert
from core.errors import ConvertError
from core.template import find_template


def test_added_tokens_of_a_sentencepiece_are_told_where_llama_cpp_looks(tmp_path: Path) -> None:
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    for folder in (base, adapter, out):
        folder.mkdir()
    (base / "tokenizer.model").write_bytes(b"sentencepiece")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    mark = {"id": 106, "content": "<start_of_turn>", "special": True, "lstrip": False, "rstrip": False}
    tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [mark]}
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    # As transformers 5 saves it, without added_tokens_decoder.
    (adapter / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "auto_map": {}}')
    TokenizerFiles(base, adapter).copy(out, {"model_type": "gemma"})
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"]["106"]["content"] == "<start_of_turn>"
    assert config["added_tokens_decoder"]["106"]["special"] is True
    assert config["tokenizer_class"] == "GemmaTokenizer"
    assert "auto_map" not in config
    assert (out / "tokenizer.model").read_bytes() == b"sentencepiece"


LETTERS = "abcdefgh"
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}{{ eos_token }}{% endfor %}"


def byte_fallback(path: Path, prefix: bool = True) -> Path:
    """Write a tokenizer.json as one made of a sentencepiece model: merges by falling score."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    pieces = ["ab", "\u2581a", "cd", "abcd", "\u2581ab", "aa", "aaaa"]
    for piece in [*pieces, "\u2581", *LETTERS]:
        vocab[piece] = len(vocab)
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(path))
    return path


def folder(path: Path, **added: int) -> Path:
    """A tokenizer of bytes, with tokens added at the ids given, by a name that stands for them."""
    path.mkdir()
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    content = json.loads(tokenizer.to_str())
    flags = {"special": True, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    content["added_tokens"] = [{"id": i, "content": f"<{name}>", **flags} for name, i in added.items()]
    (path / "tokenizer.json").write_text(json.dumps(content))
    config = {"pad_token": "<pad>", "eos_token": "<end>", "tokenizer_class": "TokenizersBackend"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def written(files: TokenizerFiles, out: Path, kind: str = "llama") -> dict[str, Any]:
    out.mkdir()
    files.copy(out, {"model_type": kind})
    config: dict[str, Any] = json.loads((out / "tokenizer_config.json").read_text())
    return config


def test_a_padding_token_without_a_row_is_left_out_everywhere_with_a_line(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", end=8, pad=9)
    (base / "added_tokens.json").write_text('{"<pad>": 9}')
    (base / "special_tokens_map.json").write_text('{"pad_token": {"content": "<pad>"}, "eos_token": "<end>"}')
    files = TokenizerFiles(base, base)
    assert files.check({"model_type": "llama"}, 10, "x/y") == []
    (line,) = files.check({"model_type": "llama"}, 9, "x/y")
    assert line == "Left out the token '<pad>' (9), which nothing uses: the model has 9 rows."
    config = written(files, tmp_path / "out")
    assert "pad_token" not in config
    assert config["eos_token"] == "<end>"
    kept = [path.read_text() for path in sorted((tmp_path / "out").iterdir())]
    assert not any("<pad>" in text for text in kept)
    assert "<end>" in (tmp_path / "out" / "tokenizer.json").read_text()
    assert to_convert({"pad_token_id": 9}, 9) == {"pad_token_id": None}
    assert to_convert({"pad_token_id": 8}, 9) == {"pad_token_id": 8}
    assert to_convert({"model_type": "cohere2"}, 9) == {"model_type": "cohere2", "rotary_pct": 1.0}
    half = {"model_type": "cohere2", "rotary_pct": 0.5}
    assert to_convert(half, 9) == half


@pytest.mark.parametrize(
    ("name", "seen", "reason"),
    [
        ("end", (), "it begins or ends a text"),
        ("user", (), "the chat template writes it"),
        ("new", (9,), "training used it"),
        ("pad", (9,), "training used it"),
    ],
)
def test_a_token_that_is_used_needs_a_row(
    tmp_path: Path, name: str, seen: tuple[int, ...], reason: str
) -> None:
    base = folder(tmp_path / "base", **{name: 9})
    template = TEMPLATE.replace("<|user|>", "<user>")
    (base / "chat_template.jinja").write_text(template)
    adapter = folder(tmp_path / "adapter", **{name: 9})
    with pytest.raises(ConvertError, match=f"{reason}: .*adapter was saved without .*save_embedding_layers"):
        TokenizerFiles(base, adapter).check({"model_type": "llama"}, 9, "x/y", seen)
    with pytest.raises(ConvertError, match=f"{reason}: .* resize_token_embeddings|{reason}: .*resized"):
        TokenizerFiles(base, base).check({"model_type": "llama"}, 9, "x/y", seen)


def test_a_token_that_an_adapter_brought_is_not_thought_unused(tmp_path: Path) -> None:
    base, adapter = folder(tmp_path / "base", end=8), folder(tmp_path / "adapter", end=8, new=9)
    with pytest.raises(
        ConvertError, match=r"'<new>' \(9\) has none, .* it was added for the adapter: .*adapter was saved"
    ):
        TokenizerFiles(base, adapter).check({"model_type": "llama"}, 9, "x/y")
    padded = folder(tmp_path / "padded", end=8, pad=9)
    (line,) = TokenizerFiles(base, padded).check({"model_type": "llama"}, 9, "x/y")
    assert line.startswith("Left out the token '<pad>' (9)")
    old = folder(tmp_path / "old", end=8, new=9)  # the base has it too, without a row
    assert len(TokenizerFiles(old, adapter).check({"model_type": "llama"}, 9, "x/y")) == 1


def test_a_tokenizer_with_more_words_than_rows_is_of_another_model(tmp_path: Path) -> None:
    base = folder(tmp_path / "base")
    with pytest.raises(
        ConvertError, match=r"the embedding has 7 rows: 'h' \(7\) has none; .* of another model"
    ):
        TokenizerFiles(base, base).check({"model_type": "llama"}, 7, "x/y")


def test_a_phi_4_is_told_from_a_phi_3_by_its_tokenizer(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", end=8)
    files = TokenizerFiles(base, base)
    assert files.check({"model_type": "phi3"}, 10, "x/y") == []
    assert written(files, tmp_path / "out", "phi3")["tokenizer_class"] == "GPT2Tokenizer"
    (base / "config.json").write_text('{"model_type": "phi3", "_name_or_path": "my-Phi3"}')
    assert model_name(base, "run") == "my-Phi_3 run", "llama.cpp would look for </s> in it"
    (base / "tokenizer.json").unlink()
    assert model_name(base, "run") == "my-Phi3 run"
    base = folder(tmp_path / "gemma", end=8)
    with pytest.raises(ConvertError, match=r"gemma2 needs tokenizer.model, .*: hf download 'x y' tokenizer"):
        TokenizerFiles(base, base).check({"model_type": "gemma2"}, 10, "x y")


@pytest.mark.parametrize("prefix", [True, False])
def test_a_lost_tokenizer_model_is_written_out_of_the_merges(tmp_path: Path, prefix: bool) -> None:
    base = tmp_path / "base"
    base.mkdir()
    path = byte_fallback(base / "tokenizer.json", prefix)
    ours, theirs = SentencePieceProcessor(model_proto=rebuild(path)), Tokenizer.from_file(str(path))
    for text in ("ab abcd aaaaaaa", "  a\n\u00e9 \U0001f600", "abcdabcd"):
        assert ours.EncodeAsIds(text) == theirs.encode(text).ids
    files = TokenizerFiles(base, base)
    (line,) = files.check({"model_type": "gemma2"}, 500, "x/y")
    assert line.startswith("Writing tokenizer.model out of ")
    config = written(files, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").is_file()
    assert config.get("add_prefix_space", True) == prefix
    assert config["added_tokens_decoder"]["2"]["content"] == "</s>"


def test_merges_that_are_no_scores_are_refused_with_the_file_named(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    content = json.loads(byte_fallback(base / "tokenizer.json").read_text())
    content["model"]["merges"] = []  # llama.cpp would still merge whatever is a token
    (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConvertError, match=r"tokenizer.model is not in .*other ids.*hf download x/y"):
        TokenizerFiles(base, base).check({"model_type": "gemma"}, 500, "x/y")


def test_the_template_is_written_to_one_place(tmp_path: Path) -> None:
    base, adapter = folder(tmp_path / "base", end=8), folder(tmp_path / "adapter", end=8)
    (base / "chat_template.jinja").write_text("of the base")
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    for given, expected in ((None, "of the base"), ("of the adapter", "of the adapter")):
        (adapter / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": given}))
        files = TokenizerFiles(base, adapter)
        assert files.template() == expected
        out = tmp_path / f"out {expected}"
        assert "chat_template" not in written(files, out)
        assert find_template([out]).found_in == out / "chat_template.jinja"
        assert find_template([out]).text == expected


def test_added_tokens_of_the_adapter_are_told_and_another_models_words_refused(tmp_path: Path) -> None:
    base, adapter = (
        folder(tmp_path / "base", end=8, old=9),
        folder(tmp_path / "adapter", end=8, old=9, user=10),
    )
    files = TokenizerFiles(base, adapter)
    assert files.check({}, 11, "x/y", seen=[10]) == [
        "note: 1 added tokens of the adapter's tokenizer are not the base's, the first is '<user>' (10); the "
        "adapter's are taken"
    ]
    assert TokenizerFiles(adapter, adapter).check({}, 11, "x/y") == []
    content = json.loads((adapter / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"a": 1, "b": 0}
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        ConvertError, match=r"another model than .*: 2 of its tokens have other ids, 'a' is 1 th"
    ):
        TokenizerFiles(base, adapter).check({}, 11, "x/y")
