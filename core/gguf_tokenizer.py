"""Rebuilds the tokenizer that a GGUF describes as Hugging Face files, with the ids that llama.cpp gives.

transformers reads these fields too, but not as llama.cpp does: SmolLM2 gets another EOS and byte fallback,
Gemma other merges. The rules are those of llama.cpp's src/llama-vocab.cpp, as llama-cpp-python 0.3.36 has it;
tests/integration/test_from_gguf.py compares ids on real vocabularies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.integrations.gguf.reader import read_gguf_metadata

from core.errors import ConvertError
from core.files import write_json
from core.gguf_model import GgufFile, read_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama_token_type; sentencepiece's too
SPACE = "\u2581"  # what sentencepiece writes for a space

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
_GPT2 = ""  # the pattern that ByteLevel has built in
# tokenizer.ggml.pre -> the pattern that cuts text into words, whether digits are cut apart first, and whether
# a word that is a token is taken whole (llm_tokenizer_bpe in llama-vocab.cpp). Only what a test compares.
_PRE: dict[str, tuple[str, bool, bool]] = {
    "gpt-2": (_GPT2, False, False),
    "smollm": (_GPT2, True, False),
    "starcoder": (_GPT2, True, False),
    "llama-bpe": (_LLAMA3, False, True),
    "llama3": (_LLAMA3, False, True),
    "llama-v3": (_LLAMA3, False, True),
    "qwen2": (_QWEN2, False, False),
}
_RSTRIP_NOT = ("<unk>", "<s>", "<|endoftext|>")  # of Phi-3's special tokens, those that keep what follows


@dataclass(frozen=True)
class Tokens:
    """The vocabulary of a GGUF; `texts`, `scores` and `types` by token id."""

    file: GgufFile
    pre: str  # tokenizer.ggml.pre
    texts: list[str]
    scores: list[float]  # all 0 where the file has none
    types: list[int]
    merges: list[str]  # "left right", best first; empty for sentencepiece
    space_prefix: bool  # sentencepiece puts a space before each stretch of text
    unknown_id: int | None
    given_pad_id: int | None

    @property
    def sentencepiece(self) -> bool:
        return self.file.tokenizer == "llama"

    @cached_property
    def pad_id(self) -> int | None:
        """The file's padding token, or another that neither begins nor ends a reply; None if there is none.

        A stop token must not be one: training masks the padding, and the model would never learn to stop.
        """
        vocab = self.file.vocab
        wrong = {*vocab.eog_ids, vocab.bos_id}
        unknown = [i for i, kind in enumerate(self.types) if kind == UNKNOWN]
        control = [i for i, kind in enumerate(self.types) if kind == CONTROL]
        return next(
            (i for i in (self.given_pad_id, *unknown, *control) if i is not None and i not in wrong), None
        )

    def added(self) -> Iterator[tuple[int, AddedToken]]:
        """Yield the tokens that llama.cpp cuts out of the text before anything else, with their ids."""
        phi3 = self.sentencepiece and self.file.architecture == "phi3"
        for i, (text, kind) in enumerate(zip(self.texts, self.types, strict=True)):
            # A token that ends a reply is control for llama.cpp, whatever type the file gives it.
            special = kind in (UNKNOWN, CONTROL) or i in self.file.vocab.eog_ids
            if special or kind == USER_DEFINED:
                strip = phi3 and text not in _RSTRIP_NOT
                yield i, AddedToken(text, special=special, normalized=False, rstrip=strip)


def read_tokens(path: Path) -> Tokens:
    """Read the vocabulary of `path`, which may be any part of a split model.

    Raises ConvertError, or ModelFileError for a file that is none.
    """
    file = read_gguf(path)  # checks every length, so that what follows reads a sound file
    try:
        fields, _ = read_gguf_metadata(str(file.path), ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"))
    except UnicodeDecodeError as error:
        raise ConvertError(f"{path.name} has text that is not UTF-8: {error.reason}") from None

    def content(key: str, default: Any) -> Any:
        return fields.get(f"tokenizer.ggml.{key}", default)

    texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(content("tokens", []))]
    types = content("token_type", None) or [NORMAL] * len(texts)
    unknown = content("unknown_token_id", None)
    if unknown is not None and file.tokenizer == "llama":
        # Converters write it as control, and others as unknown: sentencepiece wants exactly one of this type.
        types = [CONTROL if kind == UNKNOWN else kind for kind in types]
        types[unknown] = UNKNOWN
    tokens = Tokens(
        file=file,
        pre=str(content("pre", "")),
        texts=texts,
        scores=content("scores", None) or [0.0] * len(texts),
        types=types,
        merges=content("merges", []),
        space_prefix=bool(content("add_space_prefix", True)),
        unknown_id=unknown,
        given_pad_id=content("padding_token_id", None),
    )
    if file.tokenizer == "gpt2" and tokens.pre not in _PRE:
        raise ConvertError(
            f"{path.name} cuts its text by the rule {tokens.pre!r}; only {', '.join(_PRE)} can be rebuilt; "
            "get the original checkpoint from its hub instead"
        )
    if file.tokenizer not in ("gpt2", "llama"):
        raise ConvertError(
            f"{path.name} has a tokenizer of the kind {file.tokenizer!r}; only 'gpt2' and 'llama' can be "
            "rebuilt; get the original checkpoint from its hub instead"
        )
    return tokens


def write_tokenizer(tokens: Tokens, folder: Path, chat_template: str | None) -> None:
    """Write tokenizer.json, its config, tokenizer.model (for sentencepiece) and chat_template.jinja."""
    tokenizer = _sentencepiece_like(tokens) if tokens.sentencepiece else _byte_level(tokens)
    if form := tokens.file.unicode_form:
        steps = [getattr(normalizers, form)(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    added = dict(tokens.added())
    tokenizer.add_tokens(list(added.values()))
    vocab = tokens.file.vocab
    if vocab.add_bos and vocab.bos_id is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{vocab.bos} $A",
            pair=f"{vocab.bos} $A {vocab.bos}:1 $B:1",
            special_tokens=[(vocab.bos, vocab.bos_id)],
        )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    if tokens.sentencepiece:
        (folder / "tokenizer.model").write_bytes(_sentencepiece_model(tokens))
    config = _tokenizer_config(tokens, added)
    write_json(folder / "tokenizer_config.json", config)
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _tokenizer_config(tokens: Tokens, added: dict[int, AddedToken]) -> dict[str, Any]:
    vocab = tokens.file.vocab
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    special = {
        "bos_token": vocab.bos_id,
        "eos_token": vocab.eos_id,
        "unk_token": tokens.unknown_id,
        "pad_token": tokens.pad_id,
    }
    return {
        "add_bos_token": vocab.add_bos,
        "add_eos_token": False,
        # llama.cpp's converter reads the types of tokens here. The unknown token keeps its own type so.
        "added_tokens_decoder": {
            str(i): {flag: getattr(token, flag) for flag in flags}
            for i, token in added.items()
            if tokens.types[i] != UNKNOWN
        },
        **({} if tokens.space_prefix or not tokens.sentencepiece else {"add_prefix_space": False}),
        **{name: tokens.texts[i] for name, i in special.items() if i is not None},
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokens.file.n_ctx_train,
        # Reads tokenizer.json as it stands; a family's own class would build its own merges and prefix rule.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _byte_level(tokens: Tokens) -> Tokenizer:
    """Build the BPE tokenizer of a `gpt2` vocabulary."""
    pattern, digits, ignore_merges = _PRE[tokens.pre]
    vocab = {text: i for i, text in enumerate(tokens.texts) if tokens.types[i] != UNUSED}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in tokens.merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    steps: list[pre_tokenizers.PreTokenizer] = []
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_like(tokens: Tokens) -> Tokenizer:
    """Build a BPE tokenizer that merges what sentencepiece merges: the pair whose piece scores highest."""
    vocab = {text: i for i, text in enumerate(tokens.texts)}
    merges = [
        (tokens.scores[i], left, right)
        for text, i in vocab.items()
        if tokens.types[i] in (NORMAL, UNUSED)
        # sentencepiece breaks a tie by the leftmost pair, which in a run of one character is the longest left
        for cut in range(len(text) - 1, 0, -1)
        if (left := text[:cut]) in vocab and (right := text[cut:]) in vocab
    ]
    merges.sort(key=lambda merge: -merge[0])
    model = models.BPE(
        vocab=vocab,
        merges=[(left, right) for _, left, right in merges],
        unk_token=None if tokens.unknown_id is None else tokens.texts[tokens.unknown_id],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if tokens.space_prefix:
        # A normaliser, not Metaspace: llama.cpp puts a space after each special token, not only at the start.
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _sentencepiece_model(tokens: Tokens) -> bytes:
    """Serialise sentencepiece's own model: all pieces up to the last that text can be cut into.

    What follows (Phi-3's 64 chat tokens) is in tokenizer_config.json, where its family has it.
    """
    vocab = tokens.file.vocab
    count = 1 + max(i for i, kind in enumerate(tokens.types) if kind in (NORMAL, BYTE, USER_DEFINED))
    sp: Any = sentencepiece_model_pb2  # protobuf makes its classes at run time
    model = sp.ModelProto()
    for text, score, kind in zip(tokens.texts[:count], tokens.scores, tokens.types, strict=False):
        # llama.cpp's files have user-defined runs of spaces as they are in the text
        model.pieces.add(piece=text.replace(" ", SPACE), score=score, type=kind)
    trainer = model.trainer_spec
    trainer.model_type = sp.TrainerSpec.BPE
    trainer.vocab_size = count
    trainer.byte_fallback = BYTE in tokens.types
    for name, i in (("unk", tokens.unknown_id), ("bos", vocab.bos_id), ("eos", vocab.eos_id)):
        if i is not None and i < count:
            setattr(trainer, f"{name}_id", i)
            setattr(trainer, f"{name}_piece", tokens.texts[i])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = tokens.space_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return bytes(model.SerializeToString())
