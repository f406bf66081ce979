"""Chats of other programs grown into trees in which questions and replies take turns.

What a program wrote between them (tools, pictures) is left out before; two of one side that come to stand in
a row are joined, and counted. Ids are new: who knows a chat's id can follow a reply in it, and files are
passed on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from chat.conversation import Message
from chat.tree import MAX_MESSAGES, Chat, Node, Tree, new_id, title_of
from core.errors import ChatError

# Of a chat: texts that are joined stand in each branch, and can be many times the file.
MAX_CHARACTERS = 2**24

UNASKED = "replies before the first question left out"
JOINED = "messages joined with the one before them, of the same side"
BROKEN = "messages that go round in a circle, or whose beginning is missing"

Side = Literal["user", "assistant", ""]
Notes = Counter[str]


@dataclass(frozen=True)
class Item:
    """A message of a file; without a role it is left out, and what follows it follows its parent."""

    id: str
    parent: str
    role: Side = ""
    text: str = ""
    thought: str = ""
    at: float | None = None
    model: str = ""


@dataclass(eq=False)
class _Placed:
    """An item after `before`, which is of the other side, with the texts of `joined` before its own."""

    item: Item
    before: _Placed | None
    joined: _Placed | None = None
    characters: int = 0
    followed: bool = False
    absorbed: bool = False

    def parts(self) -> list[Item]:
        found, at = [], self
        while at.joined:
            found.append(at.item)
            at = at.joined
        return [at.item, *reversed(found)]


def grow(chat: Chat, items: list[Item], leaf: str, notes: Notes) -> Tree:
    """Make a tree of items in any order, with the branch to `leaf` shown. Raises ChatError."""
    if len(items) > MAX_MESSAGES:
        raise ChatError(f"more than {MAX_MESSAGES:,} messages")
    children: dict[str, list[Item]] = {}
    for item in items:
        children.setdefault(item.parent, []).append(item)
    stands: dict[str, _Placed | None] = {"": None}  # what each item became, or comes after if it is left out
    placed, waiting = list[_Placed](), children.get("", [])[::-1]
    while waiting:
        item = waiting.pop()
        if item.id in stands:
            raise ChatError("two messages of one id, or one without any")
        before = stands[item.id] = stands[item.parent]
        if item.role and (new := _place(item, before, notes)):
            stands[item.id] = new
            placed.append(new)
        waiting += children.get(item.id, [])[::-1]
    if len(stands) <= len(items):
        raise ChatError(BROKEN)
    return _tree(chat, [one for one in placed if one.followed or not one.absorbed], stands.get(leaf), notes)


def _place(item: Item, before: _Placed | None, notes: Notes) -> _Placed | None:
    size = len(item.text) + len(item.thought) + 2
    if before and before.item.role == item.role:
        notes[JOINED] += 1
        before.absorbed = True
        return _Placed(item, before.before, before, before.characters + size)
    if before is None and item.role == "assistant":
        notes[UNASKED] += 1
        return None
    if before:
        before.followed = True
    return _Placed(item, before, None, size)


def _tree(chat: Chat, placed: list[_Placed], leaf: _Placed | None, notes: Notes) -> Tree:
    if not placed:
        raise ChatError("no messages of text")
    if sum(one.characters for one in placed) > MAX_CHARACTERS:
        raise ChatError(f"more than {MAX_CHARACTERS:,} characters in all of its branches")
    nodes: dict[_Placed | None, Node] = {}
    for one in placed:
        parts, before = one.parts(), nodes.get(one.before)
        at = next(
            (part.at for part in reversed(parts) if part.at is not None), before.at if before else chat.made
        )
        text, thought = (
            "\n\n".join(filter(None, texts))
            for texts in ([part.text for part in parts], [part.thought for part in parts])
        )
        message = Message.model_validate(
            {"role": one.item.role, "content": text, "reasoning_content": thought}
        )
        parent = before.id if before else ""
        nodes[one] = Node(id=new_id(), parent=parent, at=at, message=message, model=one.item.model[:500])
    tree = Tree(chat, nodes.values())
    tree.check()
    shown = nodes.get(leaf)
    chat.leaf = shown.id if shown else next(reversed(tree.nodes))
    chat.title = chat.title or title_of(tree.branch()[0].message.content)
    return tree
