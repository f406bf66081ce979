"""Scores of quotes: the format, the author, variety, and how much is repeated from the training data.

The prompt is `Quote: <first three words>`, the reply that is wanted `<whole quote>` and, on a line of its
own, `Author: <name>`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from train.example import Example
from train.scores.scored import Scored, prompt_of, sample

PROMPTS = 24  # at most, of the test rows and of the trained rows each
MAX_NEW_TOKENS = 72  # enough for nearly all of the shipped quotes

_ENDS = " .,;:!?\"'“”\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
_FORMAT = re.compile(r"(?P<quote>\S.*)\nAuthor: (?P<author>[^\n]*\S)", re.DOTALL)


def score(model: Scored, tests: list[Example], train: list[Example]) -> dict[str, float]:
    """Return shares between 0 and 1, over at most 24 prompts of each kind.

    `format_kept`, `author_right_unseen`, `distinct_1`, `distinct_2` and `memorised` (the quote stands word
    for word in the trained rows) are of prompts that the training hasn't seen, `author_right_seen` of those
    that it has.
    """
    trained = {prompt_of(example) for example in train}
    unseen = sample([example for example in tests if prompt_of(example) not in trained], PROMPTS)
    seen = sample(train, PROMPTS)
    replies = model.answer([example.messages[:-1] for example in unseen + seen], MAX_NEW_TOKENS)
    new, known = replies[: len(unseen)], replies[len(unseen) :]
    figures: dict[str, float] = {}
    if seen:
        figures["author_right_seen"] = _authors_right(seen, known, train)
    if unseen:
        figures["author_right_unseen"] = _authors_right(unseen, new, tests)
        parsed = [parts(reply) for reply in new]
        figures["format_kept"] = _share(author is not None for _, author in parsed)
        quotes = {_plain(parts(example.messages[-1]["content"])[0]) for example in train}
        figures["memorised"] = _share(_plain(quote) in quotes for quote, _ in parsed)
        figures |= {f"distinct_{n}": distinct(new, n) for n in (1, 2)}
    return figures


def parts(reply: str) -> tuple[str, str | None]:
    """Split a reply into quote and author; the author is None unless the format is kept.

    Kept is: some text, and as the last line the only `Author: <name>`.
    """
    found = _FORMAT.fullmatch(reply.strip())
    if found is None or "\nAuthor:" in found["quote"]:
        return reply.partition("\nAuthor:")[0].strip(), None
    return found["quote"].strip(), found["author"]


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of different n-grams of words among all of `texts` (Li et al. 2016, arXiv 1510.03055).

    The paper divides by the number of words; for n = 1 that is the same. 0 where there are no n-grams.
    """
    grams = []
    for text in texts:
        words = text.lower().split()
        grams += list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 0.0


def _authors_right(examples: list[Example], replies: list[str], known: list[Example]) -> float:
    """Three words can begin quotes of several authors: each of those in `known` is right."""
    authors = defaultdict(set)
    for example in known:
        authors[prompt_of(example)].add(_plain(parts(example.messages[-1]["content"])[1] or ""))
    answered = [_plain(parts(reply)[1] or "") for reply in replies]
    return _share(
        author != "" and author in authors[prompt_of(example)]
        for example, author in zip(examples, answered, strict=True)
    )


def _plain(text: str) -> str:
    """Without the differences that don't count: case, spaces, punctuation at the ends."""
    return " ".join(text.lower().split()).strip(_ENDS)


def _share(outcomes: Iterable[bool]) -> float:
    counted = list(outcomes)
    return sum(counted) / len(counted)
