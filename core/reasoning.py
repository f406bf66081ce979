"""A reply's thought told from its answer, while it is written and afterwards; and put together again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from core.errors import TemplateError
from core.marks import TAG, Marks, Render, find_marks, generation_prompt, opened_by

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
