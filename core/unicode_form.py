"""The Unicode form that a tokenizer brings text into before it cuts it, which llama.cpp doesn't do.

Qwen's and Cohere's compose accents (NFC): an e and a combining acute become one letter. A GGUF made here
notes the form under a key of its own, and the chat brings text into it. Other programs don't know the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args
from unicodedata import is_normalized, normalize

Form = Literal["", "NFC", "NFD", "NFKC", "NFKD"]  # "" leaves text as it is
FORMS: tuple[Form, ...] = get_args(Form)
Tokenize = Callable[[str, bool], Sequence[int]]  # text, and whether special tokens are parsed, to ids

KEY = "tune2chat.unicode_form"  # of a GGUF's metadata
SPACE = "\u2581"  # sentencepiece's space, which llama.cpp also puts in, and before a text
# Letters composed and apart, marks out of order, compatibility forms, capitals, spaces inside and at the end.
PROBES = (
    "Two  SPACES \t\u00e9 e\u0301 a\u0308\u0323 \u1e9b\u0323 ``\ufb01'' \u2460\uff21  ",
    "\u1112\u1161\u11ab \uac00 ",
)


def form_of(tokenizer: Any) -> Form | None:
    """The form of a tokenizer of transformers, by what its normalizer does to text.

    None where it changes text in another way, say to lower case.
    """
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return ""
    changed = [normalizer.normalize_str(text).replace(SPACE, " ").removeprefix(" ") for text in PROBES]
    return next((f for f in FORMS if changed == [normalize(f, t) if f else t for t in PROBES]), None)


def known(value: object) -> Form:
    """The form that a file names; none where it is no such name."""
    return next((form for form in FORMS if form == value), "")


def in_form(tokenize: Tokenize, form: Form, surfaces: Iterable[str]) -> Tokenize:
    """Let `tokenize` have text in `form` only; the `surfaces` of control tokens stay apart from what follows.

    As in transformers, where a mark that combines with a token's last letter doesn't take the token away.
    """
    if not form:
        return tokenize
    names = "|".join(map(re.escape, sorted(surfaces, key=len, reverse=True)))
    token = re.compile(f"({names or '(?!)'})")

    def formed(text: str, special: bool) -> Sequence[int]:
        if is_normalized(form, text):
            return tokenize(text, special)
        pieces = token.split(text) if special else [text]  # every other one is a token
        return tokenize("".join(p if i % 2 else normalize(form, p) for i, p in enumerate(pieces)), special)

    return formed
