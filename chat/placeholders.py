"""Private-use characters that stand for a text or a reply's ids while a chat goes through a template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from core.errors import TemplateError

_PRIVATE_USE = range(0x100000, 0x10FFFE)  # plane 16
_ANY = re.compile("[\U00100000-\U0010fffd]")


class Placeholders:
    """One private-use character, found nowhere in `texts`, for each thing that is put aside."""

    def __init__(self, texts: Iterable[str]) -> None:
        taken = {letter for text in texts for letter in _ANY.findall(text)}
        self._free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        self._of_text: dict[str, str] = {}
        self.inserts: dict[str, str | Sequence[int]] = {}  # text, to be tokenised as plain text, or ids

    def for_text(self, text: str) -> str:
        """Return the placeholder of `text`, the same one each time."""
        if text not in self._of_text:
            self._of_text[text] = self._next()
            self.inserts[self._of_text[text]] = text
        return self._of_text[text]

    def for_ids(self, ids: Sequence[int]) -> str:
        """Return a new placeholder for `ids`."""
        placeholder = self._next()
        self.inserts[placeholder] = ids
        return placeholder

    def _next(self) -> str:
        for placeholder in self._free:
            return placeholder
        raise TemplateError("This chat uses every private-use character; remove some of them.")

    def split(self, rendered: str) -> list[str]:
        """Cut `rendered` before and after each placeholder; no piece is empty."""
        pieces = re.split(f"([{''.join(self.inserts)}])", rendered) if self.inserts else [rendered]
        return [piece for piece in pieces if piece]


class Surfaces:
    """Finds the surfaces of control tokens in text, the longest ones from the left.

    A set and its lengths, not one pattern of alternatives: vocabularies have up to 6,000 of them, and a
    regular expression would try each at every `<`.
    """

    def __init__(self, surfaces: Iterable[str]) -> None:
        self._surfaces = frozenset(surface for surface in surfaces if surface)
        self._lengths = sorted({len(surface) for surface in self._surfaces}, reverse=True)
        starts = "".join(sorted({re.escape(surface[0]) for surface in self._surfaces}))
        self._start = re.compile(f"[{starts}]" if starts else "(?!)")

    def hide(self, text: str, placeholders: Placeholders) -> str:
        """Return `text` with a placeholder for each surface in it."""
        pieces, done = [], 0
        for start, end in self._find(text):
            pieces += [text[done:start], placeholders.for_text(text[start:end])]
            done = end
        return "".join([*pieces, text[done:]])

    def _find(self, text: str) -> Iterator[tuple[int, int]]:
        at = 0
        while found := self._start.search(text, at):
            start = found.start()
            at = next((start + n for n in self._lengths if text[start : start + n] in self._surfaces), 0)
            if at:
                yield start, at
            at = at or start + 1


def splice(plain: str, marked: str, replies: Mapping[str, str]) -> str:
    """Return `marked` with the placeholder alone for each reply that passed through the template unchanged.

    `replies` holds text by placeholder; in `marked`, each stands between two of its placeholder. `plain` is
    the render without them, and is returned where the template edits replies by what they hold: whitespace
    apart, which templates trim, the two must be the same.
    """
    bare = marked.translate(dict.fromkeys(map(ord, replies)))
    if "".join(bare.split()) != "".join(plain.split()):
        return plain
    for placeholder, text in replies.items():
        pieces = marked.split(f"{placeholder}{text}{placeholder}")
        marked = placeholder.join(piece.replace(placeholder, "") for piece in pieces)
    return marked
