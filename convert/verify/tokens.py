"""Check: text becomes the same token ids in training, in the checkpoint's tokenizer and in the GGUF's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.verify.limits import NASTY_TEXTS, Check, Verdict
from core.errors import ChatError
from core.gguf_model import GgufFile, read_gguf
from core.gguf_reader import read_metadata
from core.model import Model
from core.rows import Row


@dataclass(frozen=True)
class Tokenized:
    """A text as the checkpoint's own tokenizer reads it: no BOS added, surfaces of special tokens parsed."""

    text: str
    ids: list[int]
    nasty: bool  # from the set of odd strings, not from a real chat
    added: str = ""  # the token that was added to the vocabulary and stands in this text
    special: bool = False  # which nobody can type: where it matters, the template writes it


def check_tokens(model: Model, rows: Sequence[Row], reference: Sequence[Tokenized]) -> list[Check]:
    """Compare the chat's ids for each row's messages with the run's, and both tokenizers on each text."""
    pieces = _pieces(model.file.path)
    plain = [text for text in reference if not text.nasty and not text.added]
    nasty = [text for text in reference if text.nasty]
    added = [text for text in reference if text.added]
    return [
        _rows(model, rows, pieces),
        _texts(model, plain, pieces),
        *_added(model, added, pieces),
        _nasty(model, nasty, pieces),
    ]


def _rows(model: Model, rows: Sequence[Row], pieces: list[bytes]) -> Check:
    """A row may be cut at training's longest sequence, or end before the template's last newline: what is
    there must be what the chat begins with. The prompt of the last reply, which the chat sends, likewise.
    """
    differences = []
    for number, row in enumerate(rows, 1):
        prompt = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
        try:
            whole = model.encoder.encode(row.messages, add_generation_prompt=False)
            asked = model.encoder.encode(prompt, add_generation_prompt=True)
        except ChatError as error:
            differences.append(f"row {number}: {error}")
            continue
        found = difference(whole[: len(row.ids)], row.ids, pieces)
        found = found or difference(asked[: len(row.ids)], row.ids[: len(asked)], pieces)
        if found:
            differences.append(f"row {number}, {found}")
    figure = f"{len(rows) - len(differences)} of {len(rows)} rows equal"
    return Check("trained ids", "fail" if differences else "ok", figure, "; ".join(differences[:1]))


def _texts(model: Model, texts: Sequence[Tokenized], pieces: list[bytes]) -> Check:
    differences = _differences(model, texts, pieces)
    figure = f"{len(texts) - len(differences)} of {len(texts)} texts equal"
    return Check("tokenizer", "fail" if differences else "ok", figure, "; ".join(differences[:1]))


def _added(model: Model, texts: Sequence[Tokenized], pieces: list[bytes]) -> list[Check]:
    """The tokenizer's own added tokens inside of text, with spaces beside them and without.

    A GGUF has no place for `lstrip`, `rstrip`, `single_word` and `normalized`: it takes a token as it stands,
    wherever it stands.
    """
    if not texts:
        return []
    wrong = [text for text in texts if _differences(model, [text], pieces)]
    tokens = dict.fromkeys(text.added for text in texts)
    broken = dict.fromkeys(text.added for text in wrong)
    figure = f"{len(tokens) - len(broken)} of {len(tokens)} equal inside text"
    if not wrong:
        return [Check("added tokens", "ok", figure)]
    typed = [text for text in wrong if not text.special]
    first = (typed or wrong)[0]
    what = _differences(model, [first], pieces)[0]
    why = "which only templates write" if first.special else "which training saw otherwise than the chat does"
    reason = f"{first.added!r}, {why}: {what}"
    return [Check("added tokens", "fail" if typed else "warn", figure, reason)]


def _nasty(model: Model, texts: Sequence[Tokenized], pieces: list[bytes]) -> Check:
    differences = _differences(model, texts, pieces)
    figure = f"{len(texts) - len(differences)} of {len(texts)} texts equal"
    verdict = NASTY_TEXTS.judge(len(differences) / max(1, len(texts)))
    return Check("odd texts", verdict, figure, "; ".join(differences[:1]))


def _differences(model: Model, texts: Sequence[Tokenized], pieces: list[bytes]) -> list[str]:
    found = []
    for text in texts:
        ids = list(model.encoder.tokenize(text.text, True)) if text.text else []
        if different := difference(ids, text.ids, pieces):
            found.append(f"{text.text[:30]!r}, {different}")
    return found


def difference(ours: Sequence[int], theirs: Sequence[int], pieces: Sequence[bytes]) -> str:
    """Say where two lists of ids part, and both tokens there; empty when they are equal."""
    if list(ours) == list(theirs):
        return ""
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )

    def token(ids: Sequence[int]) -> str:
        if at >= len(ids):
            return "the end"
        known = 0 <= ids[at] < len(pieces)
        return f"{ids[at]} {pieces[ids[at]].decode('utf-8', 'replace')!r}" if known else str(ids[at])

    return f"position {at}: {token(ours)} here, {token(theirs)} expected"


def _pieces(path: Path) -> list[bytes]:
    """The vocabulary's entries, by id."""
    tokens = read_metadata(path)["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)  # read_gguf has refused anything else
    return tokens


# Surfaces of control tokens of every family that the project converts, as somebody might type them.
_SURFACES = (
    "<s></s><unk> </s> text<s>",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<|user|>\nHi<|end|>\n<|assistant|>\n\n two newlines",
    "<start_of_turn>user\nHi<end_of_turn>\n<bos><eos><pad>",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nHi<|eot_id|>",
    "[INST] Hi [/INST] <<SYS>> <|im_ <|end <end_of_turn",
    "<0x0A><0x41>\u2581\u2581",
)

NASTY: tuple[str, ...] = (
    "",
    " ",
    "\n",
    "\t",
    " leading",
    "   three leading, two trailing  ",
    "\n\n\n three newlines \n \n",
    "a\r\nb\r\n\r\nc\rd",
    "tab\tand\t\ttabs\n\tindented",
    " " * 33 + "x" + " " * 400,
    "\n" * 40 + "\t" * 40,
    "Hello, world! It's we've I'LL DON'T 'tis he'd",
    "3 33 333 3333 33333 1,024.50 ٣٤٥ ½ Ⅷ ² 1e-9 0x1F",
    "def f(x: int) -> str:\n    return f'{x!r:>{10}}'  # comment\n\n\nclass A:\n\tpass\n",
    'for(int i=0;i<n;++i){a[i]+=b[i]*c[i];}//}}}\n#include <stdio.h>\n<div class="x">&nbsp;</div>',
    "......!!!!!!??????-----=====~~~~~#####$$$%%%^^^&&&***((()))[[[]]]{{{}}}",
    "https://example.org/a_b?c=%20d&e=f#g user.name+tag@example.co.uk",
    "🚀 😶\u200d🌫️ 👩\u200d👩\u200d👧\u200d👦 🇩🇪🇯🇵 👍🏽 ✅🦙🦙",
    "e\u0301 é a\u0308\u0323 Z\u0351\u036b\u0343a\u030a\u0327lgo \u0301alone",
    "Ünïcödé Straße ẞ İstanbul \u017f ﬁ ﬀ Ǆ ﷺ",
    "我想在apple工作1314151天\uff5e 日本語テスト。カタカナ 한국어 띄어쓰기 𠮷野家",
    "нещо на Български Ελληνικά កាន់តែពិសេសអាច नमस्ते ไทย",
    "שלום עולם العربية \u202bRTL\u202c \u200fmark ١٢٣",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeffbom\u2060word\u00adsoft",
    "no-break\u00a0space\u2003em\u3000ideographic\u2028line\u2029paragraph\u0085next\u1680ogham",
    "\ue000\uf8ff\U000f0000\U00100000\U0010fffd private",
    "\x01\x02\x1b[31mred\x7f\x80\x9f\ufffd\ufffe",
    "\u2581literal\u2581\u2581 \u2581 lower one eighth block",
    "ab" * 4096,
    "".join(chr(97 + i * i % 26) for i in range(8192)),
    "日" * 2731,
    "=" * 8192,
    *_SURFACES,
)


# config.json's architecture -> llama.cpp's (`register` lines of the converter's conversion/*.py)
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "SmolLM3ForCausalLM": "smollm3",
}


@dataclass(frozen=True)
class Facts:
    """The checkpoint's side. None is unknown; ids are in the order in which its files name them."""

    architecture: str | None  # config.json's name
    n_ctx: int | None  # tokens
    vocab_sizes: list[int]  # any of them is right: embedding rows, or the tokenizer's own count
    bos_ids: list[int]
    eos_ids: list[int]  # of tokenizer, config.json and generation_config.json
    end_of_turn_id: int | None  # the special token that the template writes after a reply
    chat_template: str | None
    adds_bos: bool | None = None  # whether the tokenizer puts a BOS before any text
    unicode_form: str | None = ""  # into which the tokenizer brings text: see core/gguf_vocab.py


def check_metadata(gguf: Path, facts: Facts) -> list[Check]:
    """Compare the header of `gguf` with the checkpoint's `facts`. Raises ModelFileError."""
    file = read_gguf(gguf)
    expected = ARCHITECTURES.get(facts.architecture or "")
    begins = [] if facts.adds_bos is None else [_equal("adds BOS", file.vocab.add_bos, [facts.adds_bos])]
    return [
        *begins,
        _equal("architecture", file.architecture, [expected] if expected else []),
        _equal("context", file.n_ctx_train, [facts.n_ctx] if facts.n_ctx else []),
        _equal("vocabulary", file.n_vocab, facts.vocab_sizes),
        _equal("BOS", file.vocab.bos_id, facts.bos_ids),
        _equal("EOS", file.vocab.eos_id, facts.eos_ids),
        _end_of_turn(file, facts),
        _file_type(file),
        _template(file.chat_template, facts.chat_template),
        *_form(file, facts),
    ]


def _equal(name: str, found: Any, allowed: list[Any]) -> Check:
    if not allowed:
        return Check(name, "n/a", str(found), "the checkpoint doesn't say")
    if found in allowed:
        return Check(name, "ok", str(found))
    return Check(name, "fail", str(found), f"the checkpoint says {' or '.join(map(str, allowed))}")


def _end_of_turn(file: GgufFile, facts: Facts) -> Check:
    """What the template ends a reply with must stop the chat; llama.cpp finds it by key or by name.

    A generation config may name more stops than that: Phi-3's has `<|assistant|>`, which ends nothing.
    """
    stops = ", ".join(map(str, sorted(file.vocab.eog_ids)))
    end = facts.end_of_turn_id
    if end is None:
        return Check("EOT", "n/a", stops, "the template writes no special token after a reply")
    if end in file.vocab.eog_ids:
        return Check("EOT", "ok", str(end))
    return Check("EOT", "fail", stops, f"replies end with {end}, which does not stop the chat")


def _file_type(file: GgufFile) -> Check:
    """A file that is named after its type, as `Q5_K_M.gguf` or `name-Q5_K_M.gguf`, must be of that type."""
    if file.file_type is None:
        return Check("file type", "fail", "unknown", "general.file_type names no type that llama.cpp has")
    named = file.path.name.removesuffix(".partial").removesuffix(".gguf").rpartition("-")[2]
    looks_like_type = named[:1] in "QIFBT" and any(letter.isdigit() for letter in named) and named.isupper()
    verdict: Verdict = "fail" if looks_like_type and named != file.file_type else "ok"
    return Check("file type", verdict, file.file_type, f"its name says {named}" if verdict == "fail" else "")


def _form(file: GgufFile, facts: Facts) -> list[Check]:
    """Nothing of a tokenizer that leaves text as it is, as most do."""
    if facts.unicode_form == file.unicode_form == "":
        return []
    found, name = file.unicode_form or "as it is", "Unicode form"
    if facts.unicode_form is None:
        return [Check(name, "warn", found, "the tokenizer changes text in a way of its own")]
    if facts.unicode_form != file.unicode_form:
        return [Check(name, "fail", found, f"the checkpoint says {facts.unicode_form or 'as it is'}")]
    return [Check(name, "ok", found, "which the chat does, and other programs of llama.cpp don't")]


def _template(ours: str | None, theirs: str | None) -> Check:
    if not ours and not theirs:
        reason = "neither checkpoint nor file has one; the chat uses a plain one"
        return Check("chat template", "warn", "none", reason)
    if ours == theirs:
        return Check("chat template", "ok", f"{len(ours or '')} characters")
    if not ours or not theirs:
        missing = "the GGUF" if theirs else "the checkpoint"
        return Check("chat template", "fail", f"{len(ours or '')} characters", f"{missing} has none")
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    reason = f"from character {at} on {ours[at : at + 20]!r}, in the checkpoint {theirs[at : at + 20]!r}"
    return Check("chat template", "fail", f"{len(ours)} characters", reason)
