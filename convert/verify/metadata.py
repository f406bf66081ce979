"""Check 1: what the GGUF says about the model is what the checkpoint says.

The chat believes these keys: a wrong stop id makes replies run on, another template makes it another model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chat.gguf_file import GgufFile, read_gguf
from convert.verify.check import Check, Verdict

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
    unicode_form: str | None = ""  # into which the tokenizer brings text: see core/unicode_form.py


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
