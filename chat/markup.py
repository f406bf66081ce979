"""Text for the chatbot, shown as it was typed: no HTML, no images from elsewhere; code as it is anyway."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

# An invisible character that joins words: after it, `<` and `&` begin nothing for the Markdown renderer.
# Entities would do the same, but would be there when a message is copied or edited.
JOINER = "\u2060"

# HTML but for addresses, entities, images, definitions of links (a title may go on over lines that look like
# a fence), and the language whose blocks become diagrams, with images.
_MARKUP = re.compile(
    r"<(?=[A-Za-z/!?])(?!https?://[^\s`<>]+>)|&(?=#?\w+;)|!(?=\[)|(?<=\])(?=:)|(?<=```|~~~)[ \t]*mermaid",
    re.I,
)
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
# With one of these in a line, renderers differ on what is code: escapes, formulas, cells, addresses.
_NO_SPAN = re.compile(r"[\\$|]|\]\(|://|www\.", re.IGNORECASE)
_TICKS = re.compile(r"`+")


@lru_cache(maxsize=512)  # a page update shows every message again
def literal(text: str) -> str:
    """`text` for the chatbot, so that HTML in it is seen as it was typed, and images as links. Code is shown
    as it is anyway."""
    parts, end = [], 0
    for start, stop in _code(text):
        parts += [_MARKUP.sub(_joined, text[end:start]), text[start:stop]]
        end = stop
    return "".join([*parts, _MARKUP.sub(_joined, text[end:])])


def typed(text: str) -> str:
    """What somebody meant who edited a text that `literal` had made."""
    return text.replace(JOINER, "")


def _joined(markup: re.Match[str]) -> str:
    return markup[0] + JOINER


def _code(text: str) -> Iterator[tuple[int, int]]:
    """Where code begins and ends: fenced blocks, an open one to the end of the text, and spans in backticks.

    Reads the text once, whatever is in it: a pattern that looks for the end of each span can take minutes.
    """
    fence, began, prose = "", 0, 0
    position = 0
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if not fence and mark:
            yield from _spans(text, prose, position)
            fence, began = mark[1], position + len(line)  # its language is no code
        elif fence and mark and mark[1].startswith(fence) and line.strip() == mark[1]:
            prose = position + len(line)
            yield began, prose
            fence = ""
        position += len(line)
    if fence:
        yield began, len(text)
    else:
        yield from _spans(text, prose, len(text))


def _spans(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Spans of code in backticks, each within its line: further on, a list or a formula may begin."""
    for line in text[start:stop].splitlines(keepends=True):
        if not _NO_SPAN.search(line):
            yield from _spans_of_line(text, start, start + len(line))
        start += len(line)


def _spans_of_line(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Each ends at the next run of as many backticks as it began with."""
    runs = [match.span() for match in _TICKS.finditer(text, start, stop)]
    later: dict[int, int] = {}  # length of a run -> the nearest one to the right
    closing = [0] * len(runs)
    for index in range(len(runs) - 1, -1, -1):
        length = runs[index][1] - runs[index][0]
        closing[index] = later.get(length, 0)
        later[length] = index
    index = 0
    while index < len(runs):
        if end := closing[index]:
            yield runs[index][0], runs[end][1]
            index = end
        index += 1
