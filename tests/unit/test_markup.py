"""Text in the chat: HTML is seen as typed, code stays code, and no text takes long."""

from __future__ import annotations

import time

import pytest

from chat.markup import JOINER, literal, typed


@pytest.mark.parametrize(
    "text",
    [
        "<b>x</b>",
        "<script>alert(1)</script>",
        "</s>",
        "<!-- no -->",
        "&lt; &#60;",
        "![a](b)",
        "[a]: b",
        "```mermaid\nA",
    ],
)
def test_markup_is_broken_up_and_comes_back_as_typed(text: str) -> None:
    assert JOINER in literal(text)
    assert typed(literal(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "2 < 3 & 4 > 1",
        "<https://example.org/>",
        "`<b>`",
        "`` a ` <b> ``",
        "```html\n<b>x</b>\n```",
        "~~~\n<b>\n```\n<i>\n~~~\n",
        "```\n<b> never closed",
    ],
)
def test_code_and_harmless_signs_stay_as_they_are(text: str) -> None:
    assert literal(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "`a <b>",
        "``a` <b>",
        "```\ncode\n```\n<b>",
        "`x` <b> `y`",
        "````\n```\n````\n<b>",
        "```a`\n<b>",
        "\\`<b>",
        "`a\n<b>",
    ],
)
def test_what_only_looks_like_code_is_text(text: str) -> None:
    assert literal(text).count(JOINER) == 1
    assert literal(text).endswith(("<" + JOINER + "b>", "<" + JOINER + "b> `y`"))


@pytest.mark.parametrize(
    "text",
    [" ".join("`" * i for i in range(1, 900)), "`a " * 100_000, "```\n~~~\n" * 40_000, "<" * 300_000],
    ids=["growing runs", "lonely backticks", "fences", "brackets"],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.perf_counter()
    literal(text)
    assert time.perf_counter() - began < 3
