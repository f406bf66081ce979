"""Which tokens of a vocabulary are special, decided as llama.cpp decides it.

The source is llama_vocab::impl::load in llama.cpp's src/llama-vocab.cpp, lines 1940 to 3010 of the copy that
llama-cpp-python 0.3.36 builds. tests/integration/test_gguf_against_llama_cpp.py compares the outcome with
llama.cpp itself on real vocabularies, so an update that moves these rules is noticed there.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core.gguf_reader import Value

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # llama_token_type

# Some files give the marks of their template the type USER_DEFINED, which llama.cpp finds in plain text too.
_MARK = re.compile(rb"[<\[]\S+[>\]]")
_THINKING = (b"<think>", b"</think>")  # the model's own words, not a mark between speakers

# tokenizer.ggml.model -> BOS and EOS ids where the file names none
_DEFAULT_IDS: dict[str, tuple[int | None, int | None]] = {
    "llama": (1, 2),
    "bert": (101, None),
    "gpt2": (11, 11),
    "hybriddna": (11, 11),
    "whitespace": (11, 11),
    "t5": (None, 1),
    "plamo2": (1, 2),
}
_NO_DEFAULT_BOS = {"chatglm-bpe", "glm4", "glm5"}  # tokenizer.ggml.pre
_ADD_BOS_MODELS = {"llama", "bert"}
_ADD_BOS_PRE = {
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    "tekken", "chameleon",
}  # fmt: skip

# Tokens that end a reply, whatever type the file gives them. It contains every name by which llama.cpp
# finds an end-of-turn or end-of-message token.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\uff5cend▁of▁sentence\uff5c>", "[e~[",
)  # fmt: skip

# Names of fill-in-the-middle tokens: metadata keys that switch the search off, and the names.
_MIDDLES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("fim_pre_token_id", "prefix_token_id"),
        ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim▁begin\uff5c>", "<PRE>", "▁<PRE>",
         "<|code_prefix|>", "<|prefix|>"),
    ),
    (
        ("fim_suf_token_id", "suffix_token_id"),
        ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim▁hole\uff5c>", "<SUF>", "▁<SUF>",
         "<|code_suffix|>", "<|suffix|>"),
    ),
    (
        ("fim_mid_token_id", "middle_token_id"),
        ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim▁end\uff5c>", "<MID>", "▁<MID>",
         "<|code_middle|>", "<|middle|>"),
    ),
)  # fmt: skip
# The same for three kinds that also end a reply.
_ENDING_MIDDLES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("fim_pad_token_id",), ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    (("fim_rep_token_id",), ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    (("fim_sep_token_id",), ("<|file_sep|>",)),
)
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss


@dataclass(frozen=True)
class Vocab:
    """The special tokens of one vocabulary."""

    size: int
    model: str  # tokenizer.ggml.model: gpt2, llama, ...
    bos_id: int | None
    eos_id: int | None
    bos: str  # empty where there is no such token
    eos: str
    add_bos: bool
    control: dict[str, int]  # surface -> id of all that tokenising with special tokens off must never yield
    eog_ids: frozenset[int]


def build_vocab(metadata: Mapping[str, Value], tokens: list[bytes]) -> Vocab:
    """Sort out the special tokens.

    Raises ValueError, with the end of a sentence, for a vocabulary on which llama.cpp itself gives up.
    """
    ids = {token or f"[EMPTY_{i}]".encode(): i for i, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token and ids[token] != i)
        raise ValueError(f"the token {_text(twice)!r} is in the vocabulary twice")
    types = metadata.get("tokenizer.ggml.token_type")
    if types is not None and (not isinstance(types, array) or len(types) < len(tokens)):
        raise ValueError("the list of token types doesn't match the vocabulary")
    model, pre = (str(metadata.get(f"tokenizer.ggml.{key}", "")) for key in ("model", "pre"))
    default_bos, default_eos = _DEFAULT_IDS.get(model, (None, None))
    bos_id = _id(metadata, len(tokens), "bos_token_id", None if pre in _NO_DEFAULT_BOS else default_bos)
    eos_id = _id(metadata, len(tokens), "eos_token_id", default_eos)
    control, eog = _special(metadata, ids, types or array("i"), eos_id)
    return Vocab(
        size=len(tokens),
        model=model,
        bos_id=bos_id,
        eos_id=eos_id,
        bos="" if bos_id is None else _text(tokens[bos_id]),
        eos="" if eos_id is None else _text(tokens[eos_id]),
        add_bos=_add_bos(metadata, model, pre),
        control={_text(tokens[i]): i for i in sorted(control | eog) if tokens[i]},
        eog_ids=frozenset(eog),
    )


def _special(
    metadata: Mapping[str, Value], ids: dict[bytes, int], types: array[int] | array[float], eos_id: int | None
) -> tuple[set[int], set[int]]:
    """Return the ids that are control or unknown, and those that end a reply."""

    def named(names: tuple[str, ...]) -> list[int]:
        return [ids[name.encode()] for name in names if name.encode() in ids]

    size = len(ids)
    control = {i for i, kind in enumerate(types[:size]) if kind in (_UNKNOWN, _CONTROL)}
    control.update(_marks(metadata, ids, types))
    eog: set[int] = set()
    for keys, names in _MIDDLES + _ENDING_MIDDLES:
        given = [i for key in keys if (i := _id(metadata, size, key, None)) is not None]
        # llama.cpp takes whichever of several names its hash table yields first; we take them all as control
        control.update([] if given else named(names))
        if (keys, names) in _ENDING_MIDDLES:
            eog.update(given or named(names)[:1])
    control.update(named(_ENDS))
    eog.update(named(_ENDS))
    control.update(named(_ALWAYS_SHOWN))  # llama.cpp parses them even in plain text
    eot_and_eom = (_id(metadata, size, key, None) for key in ("eot_token_id", "eom_token_id"))
    eog.update(i for i in (eos_id, *eot_and_eom) if i is not None)

    def ends(*names: str) -> bool:
        return any(i in eog for i in named(names))

    # gpt-oss and solar-open end messages, not replies, with <|end|>: nobody may type it all the same
    if ends("<|call|>", "<|calls|>") and ends("<|return|>", "<|flush|>") and ends("<|end|>"):
        eog.difference_update(named(("<|end|>",)))
    if ends("<|tool_response>", "<|plamo:eos|>"):  # Gemma 4 and PLaMo have an ordinary </s>
        eog.difference_update(named(("</s>",)))
        control.difference_update(named(("</s>",)))
    return control, eog


def _marks(
    metadata: Mapping[str, Value], ids: dict[bytes, int], types: array[int] | array[float]
) -> Iterator[int]:
    """User-defined tokens that the chat template writes between speakers."""
    template = str(metadata.get("tokenizer.chat_template", "")).encode("utf-8", "replace")
    for token, i in ids.items():
        defined = i < len(types) and types[i] == _USER_DEFINED and token not in _THINKING
        if defined and _MARK.fullmatch(token) and token in template:
            yield i


def _add_bos(metadata: Mapping[str, Value], model: str, pre: str) -> bool:
    if model == "gemma4" or (model == "gpt2" and pre == "gemma4"):
        return True  # llama.cpp overrules the file here
    given = metadata.get("tokenizer.ggml.add_bos_token")
    if given is not None:
        return bool(given)
    return model in _ADD_BOS_MODELS or (model in ("gpt2", "hybriddna", "whitespace") and pre in _ADD_BOS_PRE)


def _id(metadata: Mapping[str, Value], size: int, key: str, default: int | None) -> int | None:
    """Return the id under `key`; llama.cpp ignores ids outside the vocabulary, so this does too."""
    found = metadata.get(f"tokenizer.ggml.{key}")
    if isinstance(found, int) and 0 <= found < size:
        return found
    return default if default is not None and default < size else None


def _text(token: bytes) -> str:
    return token.decode("utf-8", "backslashreplace")
