"""One row of the data, before and after it became token ids."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """A chat that ends with the assistant's turn, or a plain text; exactly one of the two is not empty.

    Rows of one `group` (an author, a thread, a campaign) stay in one split. A message has `role`, `content`
    and, of the assistant, perhaps `reasoning_content`. `untrained` are the places in `messages` of replies
    that are context only. A text begins with `prompt`, which isn't trained; its control tokens are tokens
    where it is `rendered`, and characters where it isn't. `pair` is a prompt with its completion as they
    came, of which `messages` is the chat. `split` is what the data itself says. `row` is the row's number,
    from 1; of equal examples it may differ.
    """

    messages: list[dict[str, str]]
    text: str
    group: str
    untrained: frozenset[int] = frozenset()
    prompt: str = ""
    rendered: bool = False
    pair: tuple[str, str] | None = field(default=None, compare=False)
    split: str = field(default="", compare=False)
    row: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Encoded:
    """`mask[i]` is 1 where `ids[i]` is trained, else 0; both as long.

    `messages` is empty for a text, and where the template alone doesn't give these ids. Of its replies,
    `untrained` are context only.
    """

    ids: list[int]
    mask: list[int]
    messages: list[dict[str, str]]
    untrained: int = 0
