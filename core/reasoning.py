"""A reply's thought told from its answer, while it is written and afterwards; and put together again.

And what a base's template does with the thoughts of a reply (`reasoning_content`). Most templates of thinking
models show the thought of the last reply and drop those of earlier ones (Qwen3). Some show none and open one
in the prompt for a reply (DeepSeek-R1's distillates): the model writes the thought, its end and the answer
after that prompt, so this is how a reply is put together here too, with an empty thought where the data has
none. Others close it in the prompt (Gemma 4): the answer follows at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from core.errors import TemplateError
from core.marks import TAG, Marks, Render, find_marks, generation_prompt, opened_by
from core.prompt import Messages

DEFAULT_START = "<think>"  # of models whose template says nothing about thoughts
LONGEST_NAME = 200  # characters of a segment's name: a channel with its recipient


class Reply(NamedTuple):
    """What a model has written, without its marks. `thinking`: the thought has not come to its end."""

    thought: str
    answer: str
    thinking: bool


class Piece(NamedTuple):
    """A part of a reply as the model wrote it: a mark, to be read as its tokens, or text."""

    text: str
    is_mark: bool


@dataclass(frozen=True)
class Reasoning:
    """How one model thinks: its marks, and whether a prompt already opens the thought."""

    marks: tuple[Marks, ...] = ()
    prompt: Callable[[str], str] = field(default=lambda system: "", repr=False)

    @classmethod
    def of(cls, render: Render, template: str) -> Reasoning:
        """Read it off the model's template, which `render` fills."""

        @lru_cache(maxsize=64)  # a system message can switch thinking off
        def prompt(system: str) -> str:
            try:
                return generation_prompt(render, system)
            except TemplateError:
                return ""  # the turn itself will say why

        return cls(find_marks(render, template), prompt)

    def shown(self, control: Iterable[str]) -> frozenset[str]:
        """Return those of the surfaces in `control` that an engine must leave in a reply's text."""
        text = "".join(f"{m.lead}{m.bridge}{m.closer}" for m in self.marks)
        return frozenset(surface for surface in control if surface in text)

    def opened(self, system: str = "") -> Marks | None:
        """Return the marks of the thought that the prompt for a reply leaves open, if it does."""
        prompt = self.prompt(system)
        for marks in self.marks:
            begun = prompt.rfind(marks.start) if marks.start else -1
            if begun >= 0 and prompt.find(marks.end, begun + len(marks.start)) < 0:
                return marks
        return None

    def split(self, text: str, *, opened: Marks | None = None, done: bool = True) -> Reply:
        """Tell the thought in `text` from the answer; what may become a mark is held back until `done`."""
        text = text.lstrip()
        marks = opened or self._begun(text) or opened_by(text)
        if marks is None:
            starts = [DEFAULT_START, *(start for m in self.marks for start in (m.start, m.direct))]
            return Reply("", "" if not done and _could_become(text, starts) else text, False)
        if marks.frame:
            return _segments(text, marks, marks.frame, done)
        return _pair(text, marks, opened is not None, done)

    def _begun(self, text: str) -> Marks | None:
        """Return the marks with one of which `text` begins."""
        for marks in self.marks:
            begins = marks.frame and text.startswith(marks.frame[0])
            if begins or any(mark and text.startswith(mark) for mark in (marks.start, marks.direct)):
                return marks
        return None

    def text(self, reply: Reply) -> str:
        """Return `reply` as one text with its marks."""
        return "".join(piece.text for piece in self.pieces(reply, None))

    def pieces(self, reply: Reply, opened: Marks | None) -> list[Piece]:
        """Return `reply` as the model wrote it after its prompt, so that it can go on from there."""
        marks = opened or next(iter(self.marks), None)
        if marks is None:
            marks = opened_by(DEFAULT_START)
            assert marks is not None
        if reply.thinking or reply.thought or opened:
            around = (("" if opened else marks.lead), "" if reply.thinking else marks.bridge)
            found = [(around[0], True), (reply.thought, False), (around[1], True), (reply.answer, False)]
        else:
            found = [(marks.direct, True), (reply.answer, False)]
        return [Piece(text, is_mark) for text, is_mark in found if text]


def _pair(text: str, marks: Marks, inside: bool, done: bool) -> Reply:
    """Read a thought between two marks, once or several times, then the answer."""
    thoughts: list[str] = []
    while inside or (marks.start and text.startswith(marks.start)):
        thought, end, rest = text.removeprefix(marks.start).partition(marks.end)
        if not end:
            if not done:
                thought = _without_beginning(thought, marks.end)
            return Reply(_joined(thoughts, thought.lstrip()), "", True)
        thoughts.append(thought.strip())
        text, inside = rest.lstrip(), False
    if not done and _could_become(text, [marks.start, marks.opener, marks.direct]):
        text = ""
    opener = next((mark for mark in (marks.opener, marks.direct) if mark and text.startswith(mark)), "")
    text = text.removeprefix(opener).lstrip() if opener else text
    return Reply(_joined(thoughts), _before_closer(text, marks.closer, done), False)


def _segments(text: str, marks: Marks, frame: tuple[str, str], done: bool) -> Reply:
    """Read segments that begin with their name: thoughts have one name, and all else is answer."""
    before, after = map(re.escape, frame)
    name = rf"((?:(?!{after})[^\n]){{0,{LONGEST_NAME}}}?)"
    header = re.compile(rf"\s*(?:{re.escape(marks.end)})?\s*(?:{re.escape(marks.gap)})?{before}{name}{after}")
    first, *named = header.split(text)
    own = marks.start[len(frame[0]) : -len(frame[1])]
    thoughts: list[str] = []
    answers, thinking = [first] if first.strip() else [], False
    for title, body in zip(named[::2], named[1::2], strict=True):
        whole, end, _ = body.partition(marks.end)
        if not end:  # a header that is not complete is no text
            whole = whole.partition(frame[0])[0]
            whole = whole.removesuffix(marks.gap)
            whole = whole if done else _without_beginning(whole, marks.end, marks.gap, frame[0])
        thinking = title.strip() == own and not end
        (thoughts if title.strip() == own else answers).append(whole.lstrip() if thinking else whole.strip())
    starts = [marks.start, marks.direct, frame[0]]
    if not named and (first.startswith(frame[0]) or (not done and _could_become(first, starts))):
        answers = []
    return Reply(_joined(thoughts), _before_closer(_joined(answers), marks.closer, done), thinking)


def _joined(parts: list[str], last: str = "") -> str:
    return "\n\n".join(part for part in (*parts, last) if part)


def _could_become(text: str, marks: Iterable[str]) -> bool:
    """Whether `text` is the beginning of one of `marks`, and no more than that."""
    return bool(text) and any(mark != text and mark.startswith(text) for mark in marks)


def _without_beginning(text: str, *marks: str) -> str:
    """Return `text` without the beginning of a mark at its end."""
    longest = max(map(len, marks))
    for n in range(min(longest - 1, len(text)), 0, -1):
        if any(mark.startswith(text[-n:]) and mark != text[-n:] for mark in marks):
            return text[:-n]
    return text


def _before_closer(text: str, closer: str, done: bool) -> str:
    """Return the answer without the marks that follow it, all or the first of them."""
    bare = text.rstrip()
    first = TAG.match(closer)
    for n in range(min(len(closer), len(bare)), 0, -1):
        whole = n == len(closer) or (first and n >= first.end())
        if bare.endswith(closer[:n]) and (whole or not done):
            return bare[:-n].rstrip()
    return text


KEYS = ("reasoning_content", "reasoning", "thinking")  # what templates call a thought, one of them
_ASK, _REPLY, _THOUGHT = "zaskz", "zreplyz", "zthoughtz"


class Thoughts:
    """How one template, which `fill` fills, treats thoughts.

    `key` is what it calls one, None if it shows none. `opened` are the marks of a thought that the prompt
    for a reply opens and that the reply, as the template shows it, doesn't begin with. `cuts` says whether
    a thought at the beginning of a reply's text is dropped.
    """

    def __init__(self, fill: Render, template: str) -> None:
        self._fill = fill
        self._reasoning = Reasoning.of(fill, template)
        self.key = next((key for key in KEYS if self._shows(key)), None)
        self._opening = self._unshown_opening()
        self.opened: Marks | None = self._reasoning.opened() if self._opening else None
        self.cuts = self.key is None and not self._keeps(f"<think>\n{_THOUGHT}\n</think>\n\n{_REPLY}")

    @property
    def shown(self) -> bool:
        """Whether a thought has a place at all."""
        return bool(self.key or self.opened)

    def told_apart(self, message: dict[str, str]) -> dict[str, str]:
        """The reply with a thought that its text begins with under its own key, where it isn't mere text."""
        if not (self.shown or self.cuts) or message.get("reasoning_content"):
            return message
        found = self._reasoning.split(message["content"])
        if not found.thought or not found.answer or found.thinking:
            return message
        return message | {"content": found.answer, "reasoning_content": found.thought}

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """The text of a chat, as the model is given it or would have written it. Raises TemplateError."""
        named = [self._named(message) for message in messages]
        text = self._fill(named, add_generation_prompt)
        if add_generation_prompt or not self._opening or messages[-1]["role"] != "assistant":
            return text
        prompt = self._fill(named[:-1], True)
        begun = prompt.removesuffix(self._opening)
        if text.startswith(prompt) or not text.startswith(begun):
            return text
        thought = messages[-1].get("reasoning_content", "") + self.opened.bridge if self.opened else ""
        return prompt + thought + text[len(begun) :].lstrip("\n")

    def composes(self, messages: Messages) -> bool:
        """Whether `render` puts more in the chat's text than the template does."""
        named = [self._named(message) for message in messages]
        return bool(self._opening) and self.render(messages, False) != self._fill(named, False)

    def _named(self, message: dict[str, str]) -> dict[str, str]:
        thought = message.get("reasoning_content")
        if thought is None or self.key == "reasoning_content":
            return message
        plain = {key: value for key, value in message.items() if key != "reasoning_content"}
        return plain | {self.key: thought} if self.key else plain

    def _shows(self, key: str) -> bool:
        ask = {"role": "user", "content": _ASK}
        try:
            return _THOUGHT in self._fill(
                [ask, {"role": "assistant", "content": _REPLY, key: _THOUGHT}], False
            )
        except TemplateError:
            return False

    def _keeps(self, reply: str) -> bool:
        try:
            turns = [{"role": "user", "content": _ASK}, {"role": "assistant", "content": reply}]
            return _THOUGHT in self._fill(turns, False)
        except TemplateError:
            return True

    def _unshown_opening(self) -> str:
        """What the prompt for a reply ends with and a reply doesn't begin with."""
        ask = {"role": "user", "content": _ASK}
        try:
            prompt = self._fill([ask], True)
            before = self._fill([ask, {"role": "assistant", "content": _REPLY}], False).partition(_REPLY)[0]
        except TemplateError:
            return ""
        return prompt.removeprefix(before) if prompt.startswith(before) else ""
