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

from train.example import Example
from train.loaded import Loaded
from train.recipe import Data
from train.table import Table, group_of, text_of

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
