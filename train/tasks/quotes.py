"""Quotes with their authors: columns `quote` and `author`, as Abirate/english_quotes has them.

The user says how a quote begins, the assistant says it whole and by whom it is:

    user       Quote: Stay hungry, so
    assistant  Stay hungry, so you can eat.
               Author: Syed Balkhi

An author's quotes stay in one split: who is read in the test was never trained.

Of train/recipes/quotes.jsonl all is real but the empty `tags`. Of tests/fixtures/english_quotes.jsonl the
columns and the quirks are (curly marks around a quote, an author's trailing comma); most quotes are of the
former, the broken rows and the tags are made up.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from train.examples import Example, Loaded
from train.sections import Data
from train.table import Table, group_of, text_of
from train.tasks.scored import Scored, prompt_of, sample

WORDS = 3  # of the quote, in the user's turn
MARKS = (("“", "”"), ('"', '"'), ("«", "»"), ("„", "“"))


def prompt(quote: str) -> str:
    """What the user says to get `quote`."""
    return "Quote: " + " ".join(quote.split()[:WORDS])


def answer(quote: str, author: str) -> str:
    """What the assistant says."""
    return f"{quote}\nAuthor: {author}"


def read(table: Table, data: Data, loaded: Loaded) -> None:
    """Add each quote once. Raises TrainError for columns that aren't there."""
    table.require("quote", "author")
    seen = set[str]()
    for number, row in enumerate(table.rows, 1):
        quote, author = clean_quote(text_of(row, "quote")), clean_author(text_of(row, "author"))
        letters = re.sub(r"\W+", "", quote).casefold()
        if not letters or not author:
            loaded.leave_out("no author" if letters else "no quote", number)
        elif letters in seen:
            loaded.leave_out("the same quote as an earlier row's", number, on_purpose=True)
        else:
            seen.add(letters)
            # What comes after a comma is an office or a book; the person is the group.
            group = group_of(row, data, author.partition(",")[0].casefold())
            loaded.examples.append(_example(quote, author, group, data, number))


def _example(quote: str, author: str, group: str, data: Data, row: int) -> Example:
    if data.format == "text":
        return Example([], f"Quote: {quote}\nAuthor: {author}", group, row=row)
    turns = [("user", prompt(quote)), ("assistant", answer(quote, author))]
    return Example([{"role": role, "content": content} for role, content in turns], "", group, row=row)


def clean_quote(quote: str) -> str:
    """One line, without the quotation marks around it, in pairs or with the second one missing."""
    quote = " ".join(quote.split())
    for first, last in MARKS:
        if not quote.startswith(first):
            continue
        inside = quote[1:]
        if inside.endswith(last) and not _closes_early(inside[:-1], first, last):
            inside = inside[:-1]
        elif last in inside:  # it belongs to a part of the quote, not to all of it
            continue
        return inside.strip()
    return quote


def _closes_early(inside: str, first: str, last: str) -> bool:
    if first == last:
        return first in inside
    depth = 0
    for letter in inside:
        depth += (letter == first) - (letter == last)
        if depth < 0:
            return True
    return False


def clean_author(author: str) -> str:
    """One line, without a comma or a dash around it."""
    return " ".join(author.split()).strip(" ,;-–—―")  # noqa: RUF001 (dashes of all lengths)


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
