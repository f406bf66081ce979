"""Regular expressions of a JSON schema, rewritten for llama.cpp's converter, and their cost counted.

The converter copies a pattern nearly as it is into the grammar, around which it puts quotes: `.` would match
the quote that ends the string, an alternation would end outside of it, and `\\d` and `\\.` mean nothing.

llama.cpp tries a token in all ways in which a pattern can match it, one by one: `(a+)*` has millions of them
for a token of 20 letters. So they are counted, on the automaton that has a state for each character of the
pattern (Glushkov 1961), and a pattern with many is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAX_STATES = 1_000  # characters that a pattern can match one after the other, without * and +
MAX_GROUPS = 50  # one in another
TOKEN_CHARACTERS = 16  # that a long token has

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|\(\?:|\(\?|.", re.DOTALL)
_IN_CLASS = re.compile(r"\\.|.", re.DOTALL)
_SHORT = {"d": "0-9", "w": "0-9A-Za-z_", "s": " "}  # of white space, a JSON string holds spaces only
_ENDS_STRING = r'"\\\x00-\x1F'  # what JSON writes with a backslash


@dataclass(frozen=True)
class _Part:
    """A piece of a pattern: an atom, or parts one after the other, one of them, or one repeated."""

    kind: str  # "atom", "sequence", "choice", "repeat"
    text: str = ""
    parts: tuple[_Part, ...] = ()
    least: int = 1
    most: int | None = 1


def rewrite(pattern: str) -> tuple[str, int]:
    """Return `pattern` as the converter can use it, and in how many ways it matches a token.

    Raises ValueError with the reason.
    """
    if not (pattern.startswith("^") and re.search(r"(?<!\\)(?:\\\\)*\$$", pattern)):
        raise ValueError("it has to begin with ^ and end with $")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    written: list[str] = []
    part = _read(_TOKEN.findall(pattern[1:-1]), written)
    return "".join(["^(", *written, ")$"]), _Automaton(part).ways()


def _read(tokens: list[str], written: list[str]) -> _Part:
    """Read a pattern; what the converter is to have of it is added to `written`."""
    groups: list[list[list[_Part]]] = [[[]]]  # alternatives of the groups that are open, the inmost last
    before = ""
    for token in tokens:
        last = groups[-1][-1]
        if token in ("(", "(?:"):
            groups.append([[]])
            token = "("
        elif token == ")":
            closed = _choice(groups.pop())
            groups[-1][-1].append(closed)
        elif token == "|":
            groups[-1].append([])
        elif token[0] in "*+?{":
            if token == "?" and before[:1] and before[0] in "*+?{":
                continue  # a lazy repetition matches the same
            least, most = _times(token, before)
            last[-1] = _Part("repeat", parts=(last[-1],), least=least, most=most)
        else:
            token = _atom(token)
            last.append(_Part("atom", token))
        if len(groups) > MAX_GROUPS:
            raise ValueError(f"it has more than {MAX_GROUPS} groups, one in another")
        written.append(token)
        before = token
    return _choice(groups[0])


def _choice(alternatives: list[list[_Part]]) -> _Part:
    return _Part("choice", parts=tuple(_Part("sequence", parts=tuple(parts)) for parts in alternatives))


def _times(token: str, before: str) -> tuple[int, int | None]:
    """Return how often `token` repeats what stands before it."""
    if token in ("{", "{}"):
        raise ValueError("'{' can't be used inside it")
    if not before or before in ("(", "|"):
        raise ValueError(f"{token!r} repeats nothing")
    if before[0] in "*+?{":
        raise ValueError(f"{before + token!r} repeats a repetition")
    if token[0] != "{":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[token]
    low, comma, high = token[1:-1].partition(",")
    least = int(low or 0)
    return least, int(high) if high else None if comma else least


def _atom(token: str) -> str:
    """Return one part that isn't a group or a repetition."""
    if token == ".":
        return f"[^{_ENDS_STRING}]"
    if token[0] == "[":
        return _class(token)
    if token[0] == "\\":
        return f"[{_escaped(token[1])}]"
    if token in ("^", "$", '"', "(?", "]", "}") or token < " ":
        raise ValueError(f"{token!r} can't be used inside it")
    return token


def _class(token: str) -> str:
    """Return a class of characters. One that excludes excludes what would end the string, too."""
    negated = token.startswith("[^")
    parts = []
    for part in _IN_CLASS.findall(token[2:-1] if negated else token[1:-1]):
        ends_string = part in ('"', r"\"", r"\\") or part < " "
        if ends_string and not negated:
            raise ValueError(f"{part!r} can't be used inside it")
        if not ends_string:
            parts.append(_escaped(part[-1]) if part[0] == "\\" or part in "[]" else part)
    return f"[^{_ENDS_STRING}{''.join(parts)}]" if negated else f"[{''.join(parts)}]"


def _escaped(character: str) -> str:
    """Return what stands for a backslash and `character`, inside a class."""
    if character in _SHORT:
        return _SHORT[character]
    if character.isalnum() or character in '"\\' or not character.isascii():
        raise ValueError(f"'\\{character}' can't be used inside it")
    return f"\\x{ord(character):02X}"


@dataclass
class _Ends:
    """The states in which a part can begin and end, and whether it can match nothing."""

    empty: bool = True
    first: set[int] = field(default_factory=set)
    last: set[int] = field(default_factory=set)


class _Automaton:
    def __init__(self, part: _Part) -> None:
        self._atoms: list[str] = []  # of each state
        self._next: list[set[int]] = []  # states that can follow each
        self._begin = self._build(part).first

    def _build(self, part: _Part) -> _Ends:
        if part.kind == "atom":
            if len(self._atoms) == MAX_STATES:
                raise ValueError(f"it has more than {MAX_STATES:,} states; use smaller repetitions")
            self._atoms.append(part.text)
            self._next.append(set())
            state = {len(self._atoms) - 1}
            return _Ends(False, state, set(state))
        if part.kind == "choice":
            built = [self._build(one) for one in part.parts]
            return _Ends(
                any(one.empty for one in built),
                set().union(*(one.first for one in built)),
                set().union(*(one.last for one in built)),
            )
        if part.kind == "sequence":
            ends = _Ends()
            for one in part.parts:
                ends = self._joined(ends, self._build(one))
            return ends
        return self._repeated(part.parts[0], part.least, part.most)

    def _repeated(self, part: _Part, least: int, most: int | None) -> _Ends:
        ends = _Ends()
        for _ in range(least):
            ends = self._joined(ends, self._build(part))
        if most is None:
            again = self._build(part)
            for state in again.last:
                self._next[state] |= again.first
            return self._joined(ends, _Ends(True, again.first, again.last))
        rest = _Ends()
        for _ in range(most - least):  # (a (a (a)?)?)?, as the converter has it
            rest = self._joined(self._build(part), rest)
            rest.empty = True
        return self._joined(ends, rest)

    def _joined(self, one: _Ends, other: _Ends) -> _Ends:
        for state in one.last:
            self._next[state] |= other.first
        first = one.first | other.first if one.empty else one.first
        last = one.last | other.last if other.empty else other.last
        return _Ends(one.empty and other.empty, first, last)

    def ways(self) -> int:
        """In how many ways the pattern can go through the worst token, at most."""
        kinds = {atom: i for i, atom in enumerate(dict.fromkeys(self._atoms))}
        tests = [re.compile(atom if atom[0] == "[" else re.escape(atom)) for atom in kinds]
        samples = {*map(chr, range(32, 127)), "é", "\u4e00", *"".join(self._atoms)}
        alike = {tuple(bool(test.fullmatch(sample)) for test in tests) for sample in samples}
        matching = [[c for c, row in enumerate(alike) if row[kinds[atom]]] for atom in self._atoms]
        ways = [1] * len(self._atoms)

        def onward(states: set[int]) -> int:
            by_character = [0] * len(alike)
            for state in states:
                for c in matching[state]:
                    by_character[c] += ways[state]
            return max(1, *by_character) if by_character else 1

        for _ in range(TOKEN_CHARACTERS - 1):
            ways = [min(onward(states), 10**6) for states in self._next]
        # A token can begin anywhere in the pattern.
        return max([onward(self._begin), *ways])
