"""Replies keep the ids they were generated with. Here a token is a letter or the surface of a control one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from core.errors import TemplateError
from core.prompt import FALLBACK_TEMPLATE, Messages, PromptEncoder, render

CONTROL = {"<|im_start|>": 2, "<|im_end|>": 3}
CHATML = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TRIMMING = CHATML.replace("m.content", "m.content | trim")


def tokenize(text: str, special: bool) -> list[int]:
    pieces = re.findall(r"<\|im_start\|>|<\|im_end\|>|[^Z]" if special else r"[^Z]", text)
    return [CONTROL[piece] if piece in CONTROL else 1000 + ord(piece) for piece in pieces]


def text_of(ids: Sequence[int]) -> str:
    return "".join({2: "<|im_start|>", 3: "<|im_end|>"}.get(i) or chr(i - 1000) for i in ids)


def control_ids(ids: Sequence[int]) -> list[int]:
    return [i for i in ids if i in CONTROL.values()]


def plain(template: str, messages: Messages, generate: bool = True) -> str:
    return render(template, messages, add_generation_prompt=generate, bos="", eos="<|im_end|>")


def encoder(template: str, replies: dict[str, list[int]] | None = None) -> PromptEncoder:
    def fill(messages: Messages, add_generation_prompt: bool) -> str:
        return plain(template, messages, add_generation_prompt)

    return PromptEncoder(fill, tokenize, CONTROL, bos_id=None, add_bos=False, replies=replies or {})


def chat(*texts: str) -> Messages:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("template", [CHATML, TRIMMING, FALLBACK_TEMPLATE])
@pytest.mark.parametrize("reply", ["Hello you", " Hello you\n", "say <|im_end|> twice"])
def test_a_reply_keeps_its_ids(template: str, reply: str) -> None:
    encode = encoder(template, {reply: [71, 72, 73]}).encode
    ids = encode(chat("Hi", reply, "Bye"))
    first = encode(chat("Hi"))
    assert ids[: len(first) + 3] == [*first, 71, 72, 73]
    assert control_ids(ids) == control_ids(encode(chat("Hi", "Hello", "Bye")))


def test_the_same_reply_twice_an_empty_one_and_an_unknown_one() -> None:
    ids = encoder(CHATML, {"Yes": [71], "": [72]}).encode(chat("a", "Yes", "Yes", "Yes", "b", "", "c", "No"))
    assert ids.count(71) == 2  # the user's own "Yes" is text
    assert 72 not in ids
    assert "assistant\nNo<|im_end|>" in text_of([i for i in ids if i != 71])


def test_where_the_template_edits_replies_its_text_counts() -> None:
    template = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    replies = {"<think>2</think>4": [71, 72], "5": [73]}
    messages = chat("a", "<think>2</think>4", "b", "5", "c")
    assert 71 not in encoder(template, replies).encode(messages)
    assert encoder(template).encode(messages) == tokenize(plain(template, messages), True)
    assert encoder(template, {"<think>2</think>4": [71]}).encode(messages) == encoder(template).encode(
        messages
    )
    assert 73 in encoder(template, replies).encode(messages)
    by_content = CHATML.replace("m.content", "('' if m.content.startswith('<think>') else m.content)")
    assert encoder(by_content, replies).encode(messages) == encoder(by_content).encode(messages)


def test_a_space_that_the_template_puts_before_replies_is_not_doubled() -> None:
    template = CHATML.replace("+ m.content", "+ (' ' if m.role == 'assistant' else '') + m.content")
    ids = encoder(template, {"Hello": [71, 72]}).encode(chat("Hi", "Hello", "Bye"))
    first = encoder(template).encode(chat("Hi"))
    assert ids[: len(first) + 2] == [*first, 71, 72]


def test_a_reply_keeps_its_ids_when_the_template_may_not_read_the_chat() -> None:
    encode = encoder(CHATML.replace("m.content", "m.content | lower"), {" Hello\n": [71, 72]}).encode
    ids = encode(chat("<|IM_END|>", " Hello\n", "Bye"))
    assert ids[: len(encode(chat("<|IM_END|>"))) + 2] == [*encode(chat("<|IM_END|>")), 71, 72]


def test_a_reply_with_a_control_token_inside_counts_as_text() -> None:
    messages = chat("Hi", "Hello", "Bye")
    assert encoder(CHATML, {"Hello": [71, 3, 72]}).encode(messages) == encoder(CHATML).encode(messages)


def test_continuing_appends_the_reply_to_the_generation_prompt() -> None:
    known, unknown = encoder(CHATML, {"Hello": [71, 72]}), encoder(CHATML)
    start = unknown.encode(chat("Hi"))
    assert known.encode_continue(chat("Hi", "Hello")) == [*start, 71, 72]
    assert unknown.encode_continue(chat("Hi", " a<|im_end|>")) == [*start, *tokenize(" a<|im_end|>", False)]
    with pytest.raises(TemplateError, match="Only a reply can be continued"):
        known.encode_continue(chat("Hi", "Hello", "Bye"))


def test_a_training_row_ends_with_its_reply() -> None:
    ids = encoder(CHATML).encode(chat("Hi", "Hello"), add_generation_prompt=False)
    assert text_of(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
