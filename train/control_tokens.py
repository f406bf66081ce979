"""Control tokens that the data itself holds: tokens in rendered text, ends taken off replies, the rest named.

A `text` column often holds a chat as a template renders it: there the surface of a control token is that
token. So is it in a prompt and completion of which the prompt holds one: they are rendered too, and only the
completion is trained. A chat's turns are what people typed, and a control token in them is plain text, in
training as in the chat; but an end of turn after a reply was put there for a trainer that adds none, and the
template adds its own. Marks of another model's template are plain text for this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from core.errors import TemplateError
from core.prompt import render
from core.tokenizer import ChatTokenizer
from train.examples import Example, Loaded

# What could be a control token: in real vocabularies they are in brackets, without a blank.
_MARK = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,40}\]")
# What is one, in some model's template.
_FOREIGN = re.compile(
    r"<\|[^<>|\s]{1,60}\|>|<｜[^<>\s]{1,60}｜>|</s>|<(?:start|end)_of_turn>|<[be]os>|\[/?INST\]"  # noqa: RUF001
)
# How vocabularies call the control tokens that part turns: <|im_start|>, <start_of_turn>, <|eot_id|>...
_TURNS = re.compile(r"im_start|im_end|turn|header|eot|role|user|assistant|inst\b|message", re.IGNORECASE)

AS_TOKENS = "control tokens in the text, which are read as such"
AS_TEXT = "control tokens in a turn, which are plain text there"
FOREIGN = "marks of another model's template, which are plain text for this base"
END_TAKEN = "an end of turn after the reply taken off; the template writes its own"
RENDERED = "a prompt that is rendered already: no template is put around it"
SHOWN = 4  # marks in a message
SYSTEM_SAID = (
    "a system message in the middle put into the user's turn: the base's template has no place for it"
)
NO_THOUGHTS = "a thought left out: the base's template has no place for it"


def control_in(text: str, tokenizer: ChatTokenizer) -> list[str]:
    """The control tokens whose surface is in `text`, each once."""
    found = (mark for mark in _MARK.findall(text) if mark in tokenizer.encoder.control)
    return list(dict.fromkeys(found))


def foreign_in(text: str, tokenizer: ChatTokenizer) -> list[str]:
    """The marks in `text` that other models' templates are made of, and this one's isn't."""
    own = tokenizer.encoder.control
    found = (mark for mark in _FOREIGN.findall(text) if mark not in own and mark not in tokenizer.template)
    return list(dict.fromkeys(found))


def escaped(text: str, tokenizer: ChatTokenizer) -> str:
    """`text` with a backslash before what looks like a control token and isn't one."""
    marks = dict.fromkeys([*control_in(text, tokenizer), *foreign_in(text, tokenizer)])
    pattern = "|".join(map(re.escape, sorted(marks, key=len, reverse=True)))
    return re.sub(pattern, lambda mark: f"\\{mark[0]}", text) if marks else text


def misfit(tokenizer: ChatTokenizer) -> str:
    """What to say of a template of whose marks none is a token, while the vocabulary has such; "" of others.

    Templates of plain text (Llama 2's `[INST]`, Zephyr's `<|user|>`) belong to vocabularies that have none.
    """
    ask, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    try:
        text = render(tokenizer.template, [ask, reply, ask], add_generation_prompt=True, bos="", eos="")
    except TemplateError:
        return ""
    marks = list(dict.fromkeys(_MARK.findall(text)))
    own = [surface for surface in tokenizer.encoder.control if _TURNS.search(surface) and surface not in text]
    if not marks or not own or any(len(tokenizer.encoder.tokenize(mark, True)) == 1 for mark in marks):
        return ""
    return (
        f"the base's chat template writes {_named(marks[:SHOWN])}, no tokens of its vocabulary, which has "
        f"{_named(own[:SHOWN])}: perhaps it is another model's"
    )


def settle(examples: Iterable[Example], tokenizer: ChatTokenizer, loaded: Loaded) -> list[Example]:
    """The examples as this tokenizer is to encode them; what is changed or strange is counted."""
    return [_both(e, tokenizer, loaded) if e.rejected else _settled(e, tokenizer, loaded) for e in examples]


def _both(example: Example, tokenizer: ChatTokenizer, loaded: Loaded) -> Example:
    """A pair with both of its sides settled, which count as one row."""
    assert example.rejected
    seen = Loaded()
    rejected = _settled(example.rejected, tokenizer, seen)
    settled = replace(_settled(example, tokenizer, seen), rejected=rejected)
    for counts, count in ((seen.changed, loaded.change), (seen.noticed, loaded.notice)):
        for reason in counts:
            count(reason, example.row, seen.first[reason].partition(": ")[2])
    return settled


def _settled(example: Example, tokenizer: ChatTokenizer, loaded: Loaded) -> Example:
    if example.pair and control_in(example.pair[0], tokenizer):
        prompt, completion = example.pair
        loaded.change(RENDERED, example.row, _named(control_in(prompt, tokenizer)))
        example = replace(
            example, messages=[], text=prompt + completion, prompt=prompt, rendered=True, pair=None
        )
    if any(turn["role"] == "system" for turn in example.messages[1:]) and not system_anywhere(tokenizer):
        said = next(turn["content"] for turn in example.messages[1:] if turn["role"] == "system")
        loaded.change(SYSTEM_SAID, example.row, repr(said))
        example = _said_by_user(example)
    if example.text:
        if example.rendered and (found := control_in(example.text, tokenizer)):
            loaded.notice(AS_TOKENS, example.row, _named(found))
    elif any("reasoning_content" in turn or _marked(turn["content"]) for turn in example.messages):
        example = _chat(example, tokenizer, loaded)
    texts = [example.text, *(text for turn in example.messages for text in turn.values())]
    if found := [mark for text in texts if _marked(text) for mark in foreign_in(text, tokenizer)]:
        loaded.notice(FOREIGN, example.row, _named(dict.fromkeys(found)))
    return example


@lru_cache(maxsize=4)
def system_anywhere(tokenizer: ChatTokenizer) -> bool:
    """Whether the template shows a system message in the middle of a chat where it is, and as one."""
    turns = [
        {"role": role, "content": f"z{number}z"}
        for number, role in enumerate(("user", "assistant", "system", "user", "assistant"))
    ]
    roles = ("assistant", "user")  # a template may know two roles alone, and take the system for one
    others = [[*turns[:2], turns[2] | {"role": role}, *turns[3:]] for role in roles]
    try:
        text = tokenizer.render(turns, False)
    except TemplateError:
        return False
    places = [text.find(turn["content"]) for turn in turns]
    return places == sorted(places) and places[0] >= 0 and text not in [_shown(tokenizer, o) for o in others]


def _shown(tokenizer: ChatTokenizer, turns: list[dict[str, str]]) -> str:
    try:
        return tokenizer.render(turns, False)
    except TemplateError:
        return ""


def _said_by_user(example: Example) -> Example:
    """The example with later system messages as what the user says, in one turn with the user's own words."""
    messages: list[dict[str, str]] = []
    untrained = set[int]()
    for at, turn in enumerate(example.messages):
        said = turn | {"role": "user"} if at and turn["role"] == "system" else dict(turn)
        if messages and messages[-1]["role"] == said["role"] == "user":
            messages[-1]["content"] += f"\n\n{said['content']}"
        else:
            messages.append(said)
        if at in example.untrained:
            untrained.add(len(messages) - 1)
    return replace(example, messages=messages, untrained=frozenset(untrained))


def _marked(text: str) -> bool:
    """Whether it can hold a mark at all: nearly all texts can't, and that is quickly seen."""
    return "<" in text or "[" in text


def _chat(example: Example, tokenizer: ChatTokenizer, loaded: Loaded) -> Example:
    messages, ended, dropped = [], list[str](), ""
    for message in example.messages:
        turn = dict(message)
        if turn["role"] == "assistant":
            turn["content"] = _without_end(turn["content"], tokenizer, ended)
            turn |= tokenizer.thoughts.told_apart(turn)
            if turn.get("reasoning_content") and not tokenizer.thoughts.shown:
                dropped = dropped or turn["reasoning_content"]
                del turn["reasoning_content"]
        messages.append(turn)
    if ended:
        loaded.change(END_TAKEN, example.row, _named(dict.fromkeys(ended)))
    if dropped:
        loaded.change(NO_THOUGHTS, example.row, repr(dropped))
    typed = [mark for turn in messages for text in turn.values() for mark in control_in(text, tokenizer)]
    if typed:
        loaded.notice(AS_TEXT, example.row, _named(dict.fromkeys(typed)))
    return replace(example, messages=messages)


def _without_end(reply: str, tokenizer: ChatTokenizer, ended: list[str]) -> str:
    """A reply without the tokens that end one, which are noted in `ended`."""
    bare = reply.rstrip()
    while end := next((surface for surface in tokenizer.stop_surfaces if bare.endswith(surface)), ""):
        if bare == end:
            break
        ended.append(end)
        bare = bare.removesuffix(end).rstrip()
        reply = bare
    return reply


def _named(marks: Iterable[str]) -> str:
    return ", ".join(map(repr, marks))
