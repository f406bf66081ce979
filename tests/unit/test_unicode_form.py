"""The Unicode form that a tokenizer brings text into is found by what it does, and the chat follows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import normalizers

from core.gguf_vocab import PROBES, Form, form_named, form_of, in_form

SPACE = "\u2581"
SPACES = normalizers.Replace(" ", SPACE)
PREFIXED = normalizers.Sequence([normalizers.Prepend(SPACE), SPACES])


@pytest.mark.parametrize(
    ("normalizer", "form"),
    [
        (None, ""),
        (normalizers.Sequence([]), ""),
        (SPACES, ""),
        (PREFIXED, ""),
        (normalizers.NFC(), "NFC"),
        (normalizers.NFD(), "NFD"),
        (normalizers.NFKC(), "NFKC"),
        (normalizers.NFKD(), "NFKD"),
        (normalizers.Sequence([normalizers.NFKC(), PREFIXED]), "NFKC"),
        (normalizers.Lowercase(), None),
        (normalizers.StripAccents(), None),
        (normalizers.Strip(), None),
        (normalizers.Replace("``", '"'), None),
        (normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]), None),
    ],
)
def test_a_form_is_what_the_normalizer_does(normalizer: Any, form: Form | None) -> None:
    assert form_of(SimpleNamespace(backend_tokenizer=SimpleNamespace(normalizer=normalizer))) == form


def test_a_tokenizer_without_a_backend_has_no_form() -> None:
    assert form_of(SimpleNamespace()) == ""


def letters(text: str, special: bool) -> list[int]:
    return [ord(letter) for letter in text]


def text_of(form: Form, text: str, special: bool = True) -> str:
    return "".join(map(chr, in_form(letters, form, ["<end>", "<end>>"])(text, special)))


@pytest.mark.parametrize("text", PROBES)
def test_the_chats_text_is_the_tokenizers(text: str) -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert text_of(form_named(form), text) == getattr(normalizers, form)().normalize_str(text)
    assert text_of("", text) == text


def test_a_mark_does_not_take_a_control_token_away() -> None:
    assert text_of("NFC", "e\u0301<end>\u0338 >\u0338") == "\u00e9<end>\u0338 \u226f"
    assert text_of("NFC", "<end>\u0338", special=False) == "<end\u226f"


def test_a_form_that_nobody_knows_changes_nothing() -> None:
    assert [form_named(value) for value in ("NFX", 3, None, ["NFC"], "NFC")] == ["", "", "", "", "NFC"]
