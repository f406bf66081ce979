"""One row of the data, before and after it became token ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A chat that ends with the assistant's turn, or a plain text; exactly one of the two is not empty.

    Rows of one `group` (an author, a thread, a campaign) stay in one split.
    """

    messages: list[dict[str, str]]
    text: str
    group: str


@dataclass(frozen=True)
class Encoded:
    """`mask[i]` is 1 where `ids[i]` is trained, else 0; both as long. `messages` is empty for a text."""

    ids: list[int]
    mask: list[int]
    messages: list[dict[str, str]]
