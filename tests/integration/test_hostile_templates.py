"""Templates that loop, allocate, raise or reach into Python cost one sentence, and the next render works."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import TemplateError
from core.prompt import Messages, render
from core.templates import TemplateRenderer

CHAT = [{"role": "user", "content": "Hi"}]
GOOD = "{{ bos_token }}{% for m in messages %}{{ m.role + '\\n' + m.content }}{% endfor %}{{ eos_token }}"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

LATE, MEMORY, PYTHON = "longer than 3 seconds", "too much memory", "reached into Python"
HOSTILE = {
    "nested loops": (LOOPS, LATE),
    "a loop in C": ("{% set n = 10 ** 7777777 %}{{ (n * n) % 7 }}", LATE),
    "endless text": ("{{ lipsum(n=10 ** 9) }}", LATE),
    "long text": ("{{ 'a' * 2000000000 }}", MEMORY),
    "long list": ("{{ ([1] * 1000000000) | length }}", MEMORY),
    "doubling": (
        "{% set ns = namespace(s='aa') %}{% for i in range(99) %}{% set ns.s = ns.s * 2 %}{% endfor %}",
        MEMORY,
    ),
    "format": ("{{ '%999999999d' | format(1) }}", MEMORY),
    "format method": ("{{ '{:>999999999}'.format(1) }}", MEMORY),
    "huge output": ("{{ 'a' * 30000000 }}", "wrote more than 16,777,216 characters"),
    "long range": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "macro recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "nested brackets": ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "RecursionError"),
    "attributes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", PYTHON),
    "attributes by format": ("{{ '{0.__class__.__mro__}'.format('') }}", PYTHON),
    "attributes by filter": ("{{ ('' | attr('__class__')).__mro__ }}", PYTHON),
    "globals": ("{{ cycler.__init__.__globals__.os.system('id') }}", PYTHON),
    "namespace": ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", PYTHON),
    "syntax": ("{% for %}", "mistake in line 1"),
    "undefined": ("{{ nothing() }}", "'nothing' is undefined"),
    "include": ("{% include '/etc/passwd' %}", "failed with"),
    "raise_exception": ("{{ raise_exception('No system ' * 99) }}", "refuses the chat: 'No system No system"),
}


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    renderer = TemplateRenderer()
    yield renderer
    renderer.close()


def good(renderer: TemplateRenderer, messages: Messages = CHAT) -> str:
    return renderer.render(GOOD, messages, True, bos="<s>", eos="</s>")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_costs_a_sentence(renderer: TemplateRenderer, name: str) -> None:
    template, sentence = HOSTILE[name]
    start = time.monotonic()
    with pytest.raises(TemplateError, match=sentence) as raised:
        renderer.render(template, CHAT, True, "", "")
    assert time.monotonic() - start < 10
    assert len(str(raised.value)) < 320
    assert good(renderer) == "<s>user\nHi</s>"


@pytest.mark.parametrize(
    "template",
    ["{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns | pprint }}", "{{ 'a b' | wordwrap(1) }}"],
)
def test_filters_work_though_no_file_can_be_opened(renderer: TemplateRenderer, template: str) -> None:
    assert renderer.render(template, CHAT, True, "", "")


def test_other_threads_are_answered_while_a_template_loops(renderer: TemplateRenderer) -> None:
    answers: list[str] = []

    def loop() -> None:
        with pytest.raises(TemplateError, match=LATE):
            renderer.render(LOOPS, CHAT, True, "", "")
        answers.append("late")

    threads = [threading.Thread(target=loop)]
    threads += [threading.Thread(target=lambda: answers.append(good(renderer))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == ["<s>user\nHi</s>"] * 4 + ["late"]


def test_any_text_passes(renderer: TemplateRenderer) -> None:
    text = "a\n\r\x00\x85\u2028🦙\U00100000" * 50_000
    assert good(renderer, [{"role": "user", "content": text}]) == f"<s>user\n{text}</s>"
    with pytest.raises(TemplateError, match="Message 1 has the role 'tool'"):
        good(renderer, [{"role": "tool", "content": "a"}])


def test_a_closed_renderer_starts_again(renderer: TemplateRenderer) -> None:
    renderer.close()
    renderer.close()
    assert good(renderer) == "<s>user\nHi</s>"


def test_real_templates_render_as_in_this_process(renderer: TemplateRenderer, llama_models: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *CHAT]
    same = 0
    for path in sorted((llama_models / "templates").glob("*.jinja")):
        template = path.read_text()
        try:
            expected = render(template, messages, add_generation_prompt=True, bos="<s>", eos="</s>")
        except TemplateError as error:
            expected = str(error)
        try:
            found = renderer.render(template, messages, True, "<s>", "</s>")
        except TemplateError as error:
            found = str(error)
        assert found == expected, path.name
        same += "chat template" not in found
    assert same > 50
