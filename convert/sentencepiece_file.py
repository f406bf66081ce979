"""tokenizer.model rebuilt from tokenizer.json, where a checkpoint lost it: transformers 5 doesn't save it.

llama.cpp's converter reads it for Gemma and Phi-3, and for a Llama takes the same score for all tokens where
it is missing (gguf-py's vocab.py, `LlamaHfVocab.get_token_score`), which gives other ids. A tokenizer.json
made from a sentencepiece model lists its merges by falling score: the scores are in their order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from convert.verify.limits import NASTY_TEXTS
from convert.verify.tokens import NASTY
from core.errors import ConvertError
from core.files import read_json

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
LEAST = -1e6  # of pieces that nothing is merged into


def is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json stands for a sentencepiece BPE model, as Llama's, Gemma's and Phi-3's do."""
    model = tokenizer.get("model", {})
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def is_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Whether it cuts bytes, as GPT-2's, Llama 3's, Qwen's and Phi-4's do."""
    steps = [tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")]
    for step in steps:
        if isinstance(step, dict):
            steps += [*step.get("pretokenizers", []), *step.get("decoders", [])]
    return any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in steps)


def adds_space(tokenizer: dict[str, Any]) -> bool:
    """Whether it puts a space before a text: Llama's and Phi-3's do, Gemma's doesn't."""
    steps = [tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    for step in steps:
        if isinstance(step, dict):
            steps += [*step.get("normalizers", []), *step.get("pretokenizers", [])]
    found = [step for step in steps if isinstance(step, dict)]
    return any(step.get("type") == "Prepend" for step in found) or any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in found
    )


def rebuild(path: Path) -> bytes:
    """Return the content of tokenizer.model for a tokenizer.json.

    Compared with the original on odd texts; raises ConvertError if they differ on more than a few.
    """
    content = read_json(path)
    model = _model(content)
    texts = [text for text in NASTY if not any(t["content"] in text for t in content.get("added_tokens", []))]
    different = _differences(path, model, texts)
    if NASTY_TEXTS.judge(len(different) / max(1, len(texts))) == "fail":
        raise ConvertError(
            f"{path} can't be written as a sentencepiece model: {len(different)} of {len(texts)} texts get "
            f"other ids, first {different[0][:40]!r}"
        )
    return model


def _differences(path: Path, model: bytes, texts: list[str]) -> list[str]:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    ours, theirs = SentencePieceProcessor(model_proto=model), Tokenizer.from_file(str(path))

    def expected(text: str) -> list[int]:
        ids: list[int] = theirs.encode(text, add_special_tokens=False).ids
        return ids

    return [text for text in texts if ours.EncodeAsIds(text) != expected(text)]


def _model(content: dict[str, Any]) -> bytes:
    """Serialise sentencepiece's own model."""
    from sentencepiece import sentencepiece_model_pb2

    sp: Any = sentencepiece_model_pb2  # protobuf makes its classes at run time
    bpe = content["model"]
    scores: dict[str, float] = {}
    for rank, merge in enumerate(bpe["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        scores.setdefault(left + right, float(-rank))
    added = {token["content"]: bool(token.get("special")) for token in content.get("added_tokens", [])}
    unknown = bpe.get("unk_token") or "<unk>"
    pieces = {number: text for text, number in bpe["vocab"].items()}
    if unknown not in bpe["vocab"]:
        raise ConvertError(f"tokenizer.json has no token for what it doesn't know ({unknown!r})")
    model, kinds = sp.ModelProto(), sp.ModelProto.SentencePiece
    for number in range(max(pieces) + 1):
        text = pieces.get(number, f"[UNUSED_{number}]")
        kind = kinds.NORMAL if number in pieces else kinds.UNUSED
        if text == unknown:
            kind = kinds.UNKNOWN
        elif text in added:
            kind = kinds.CONTROL if added[text] else kinds.USER_DEFINED
        elif _BYTE.fullmatch(text):
            kind = kinds.BYTE
        model.pieces.add(piece=text, score=scores.get(text, 0.0 if kind == kinds.BYTE else LEAST), type=kind)
    trainer = model.trainer_spec
    trainer.model_type = sp.TrainerSpec.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.byte_fallback = True
    trainer.unk_id, trainer.unk_piece = bpe["vocab"][unknown], unknown
    trainer.bos_id = trainer.eos_id = trainer.pad_id = -1  # the configs name them
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = adds_space(content)
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return bytes(model.SerializeToString())
