"""Rendering chats with templates of a few lines: system messages, Jinja as transformers has it, errors."""

from __future__ import annotations

import re
from functools import partial

import pytest

from core.errors import TemplateError
from core.prompt import FALLBACK_TEMPLATE, Messages, render
from core.templates import TemplateRenderer

CHATML = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SYSTEM = {"role": "system", "content": "Be brief."}

plain = partial(render, add_generation_prompt=True, bos="<s>", eos="<|im_end|>")


def chat(*texts: str) -> Messages:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
        "{% for m in messages if m.role != 'system' %}{{ m.role + ':' + m.content }}{% endfor %}",
        "{% for m in messages if m.role != 'system' %}{% if loop.last %}{{ messages[0].content }}{% endif %}"
        "{{ m.content }}{% endfor %}",
    ],
    ids=["refuses", "drops", "moves"],
)
def test_a_system_message_without_a_place_opens_the_first_user_turn(template: str) -> None:
    with_system = plain(template, [SYSTEM, *chat("Hi", "Hello", "Bye")])
    assert with_system == plain(template, chat("Be brief.\n\nHi", "Hello", "Bye"))


def test_a_folded_system_message_alone_is_a_user_turn() -> None:
    template = "{% for m in messages if m.role != 'system' %}{{ m.role + ':' + m.content }}{% endfor %}"
    assert plain(template, [SYSTEM]) == "user:Be brief."
    assert plain(template, [SYSTEM, *chat("", "Hi")[1:]]) == "user:Be brief.assistant:Hi"


def test_a_system_message_with_a_place_stays_there_and_a_blank_one_is_left_out() -> None:
    assert plain(CHATML, [SYSTEM, *chat("Hi")]).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert plain(CHATML, [SYSTEM | {"content": " \n"}, *chat("Hi")]) == plain(CHATML, chat("Hi"))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{% for m in messages %}\n  {% if loop.last %}{% break %}{% endif %}\n{{ m.role }}{% endfor %}",
            "user",
        ),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "a"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ tools is none }}{{ unknown }}{{ bos_token }}{{ eos_token }}", "True<s><|im_end|>"),
        ("{{ strftime_now('%%') }}", "%"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
    ],
)
def test_templates_find_what_they_find_in_transformers(template: str, text: str) -> None:
    assert plain(template, chat("a", "b")) == text


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the chat: 'roles must alternate'"),
        ("{{ raise_exception('no ' * 999) }}", "no no no"),
        ("\n{% if %}", "mistake in line 2"),
        ("{{ ''.__class__.__mro__ }}", "reached into Python"),
        ("{% set ns = namespace() %}{% set ns.__init__ = 1 %}", "reached into Python"),
        ("{% set ns = namespace(_a=1) %}", "reached into Python"),
        ("{{ messages.append(1) }}", "reached into Python"),
        ("{{ nothing() }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0] + 1 }}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_bad_template_is_one_sentence(template: str, sentence: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(sentence)) as raised:
        plain(template, chat("a"))
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "no message"),
        ([{"role": "system", "content": ""}], "no message"),
        ([{"role": "tool", "content": "a"}], "Message 1 has the role 'tool'"),
        ([*chat("a"), {"content": "a"}], "Message 2 has the role None"),
        ([{"role": "user", "content": ["a"]}], "holds list instead of text"),
        ([{"role": "user"}], "holds NoneType instead of text"),
    ],
)
def test_a_bad_message_is_one_sentence(messages: Messages, sentence: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(sentence)):
        plain(CHATML, messages)


def test_the_fallback_template_reads_as_a_transcript() -> None:
    text = plain(FALLBACK_TEMPLATE, [SYSTEM, *chat("Hi", "Hello", "Bye")])
    assert text == (
        "Be brief.\n\n### User:\nHi\n\n### Assistant:\nHello<|im_end|>\n\n### User:\nBye\n\n### Assistant:\n"
    )


def test_a_template_is_told_the_time_that_was_noted() -> None:
    date = "{% macro date() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}"
    template = date + "{{ date() }} {{ messages[0].content }}"
    then = "2024-02-29T23:59:59"
    assert plain(template, chat("Hi"), now=then) == "29 Feb 2024 Hi"
    renderer = TemplateRenderer()
    try:
        assert renderer.render(template, chat("Hi"), True, "", "", then) == "29 Feb 2024 Hi"
        assert renderer.render(template, chat("Hi"), True, "", "") != "29 Feb 2024 Hi"
    finally:
        renderer.close()
