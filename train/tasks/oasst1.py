"""Chats of volunteers, columns as in OpenAssistant/oasst1: a row is a message, and messages form trees.

A tree begins with a prompter's message; each message can have several replies. At a prompter's node the reply
of rank 0 (the best) goes on, at an assistant's the branch with most turns. So a tree gives at most one chat,
and no message is trained twice. The other messages are counted, each under its reason.

A file with a tree a row (`prompt`, with `replies` in it) becomes the same.

`format: text` gives instead what seed notebooks trained on: each reply of rank 0 with the message before it,
as `### Human: {prompt}### Assistant: {answer}`.

Of tests/fixtures/oasst1.jsonl the columns and the shape of the trees are real, all messages made up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from train.examples import Example, Loaded
from train.sections import Data
from train.table import Row, Table, group_of, text_of

COLUMNS = ("message_id", "parent_id", "text", "role", "rank", "lang", "message_tree_id")
ROLES = {"prompter": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Message:
    """A row. `best`: a prompter's, or a reply of rank 0."""

    id: str
    parent: str
    text: str
    role: str
    best: bool
    row: Row
    number: int  # of the row


def read(table: Table, data: Data, loaded: Loaded) -> None:
    """Add a chat a tree, or a text a reply. Raises TrainError for columns that aren't there."""
    table.require(*COLUMNS)
    messages = _messages(table, data, loaded)
    paths = list(_pairs(messages) if data.format == "text" else _threads(messages))
    used = {message.id for path in paths for message in path}
    for path in paths:
        loaded.examples.append(_example(path, data))
        for message in path[1:]:
            loaded.leave_out("joined to the first message of its chat", message.number, on_purpose=True)
    for message in messages.values():
        if message.id in used:
            continue
        if message.parent and message.parent not in messages:
            reason = "the message before it isn't there"
        elif not message.best:
            reason = "a reply of a lower rank, or of none"
        else:
            reason = "no reply of rank 0 to it, or in another branch"
        loaded.leave_out(reason, message.number, on_purpose=True)


def of_trees(table: Table) -> Table:
    """The table with a row a message, where its rows are whole trees: OASST's files of trees hold these.

    The only reply of a message is its best, also where it has no rank.
    """
    trees = [(text_of(row, "message_tree_id"), row.get("prompt")) for row in table.rows]
    rows: list[Row] = []
    for tree, prompt in trees:
        if not tree or not isinstance(prompt, dict):
            return table
        todo: list[tuple[str, dict[str, Any], int | None]] = [("", prompt, None)]
        for parent, node, rank in todo:
            own = {"rank": rank, "lang": None} | {key: node[key] for key in node if key != "replies"}
            rows.append(own | {"message_tree_id": tree, "parent_id": parent})
            replies = [reply for reply in node.get("replies") or () if isinstance(reply, dict)]
            best = 0 if len(replies) == 1 else None
            todo += [(text_of(own, "message_id"), reply, best) for reply in replies]
    return Table(rows, list(dict.fromkeys(column for row in rows for column in row)), table.where)


def _messages(table: Table, data: Data, loaded: Loaded) -> dict[str, Message]:
    """The messages that count, by id; the others are counted."""
    messages: dict[str, Message] = {}
    for number, row in enumerate(table.rows, 1):
        key, role = text_of(row, "message_id"), text_of(row, "role")
        if text_of(row, "deleted").lower() == "true":
            reason = "deleted"
        elif data.lang and text_of(row, "lang") not in data.lang:
            reason = "in another language"
        elif role not in ROLES:
            reason = "neither prompter nor assistant"
        elif not text_of(row, "text").strip():
            reason = "empty"
        elif not key or key in messages:
            reason = "an id that is missing or was there before"
        else:
            best = role == "prompter" or _rank(row) == 0
            text = text_of(row, "text").strip()
            messages[key] = Message(key, text_of(row, "parent_id"), text, role, best, row, number)
            continue
        loaded.leave_out(reason, number, on_purpose=reason in ("deleted", "in another language"))
    return messages


def _rank(row: Row) -> float | None:
    try:
        return float(text_of(row, "rank"))
    except ValueError:  # not ranked
        return None


def _threads(messages: dict[str, Message]) -> Iterator[list[Message]]:
    """The longest path of best replies of each tree."""
    children: defaultdict[str, list[Message]] = defaultdict(list)
    for message in messages.values():
        if message.best:
            children[message.parent].append(message)
    roots = [message for message in children[""] if message.role == "prompter"]
    order = list(roots)  # parents before children; a circle of parents is never entered
    for message in order:
        order += (child for child in children[message.id] if child.role != message.role)
    turns: dict[str, int] = {}  # from a message on, up to the last reply
    following: dict[str, Message] = {}
    for message in reversed(order):
        after = [child for child in children[message.id] if turns.get(child.id)]
        if after:
            following[message.id] = max(after, key=lambda child: turns[child.id])  # the first of equals
        answered = turns[following[message.id].id] + 1 if after else 0
        turns[message.id] = max(answered, int(message.role == "assistant"))
    for root in roots:
        path = [root]
        while path[-1].id in following:
            path.append(following[path[-1].id])
        if len(path) > 1:
            yield path


def _pairs(messages: dict[str, Message]) -> Iterator[list[Message]]:
    """Each best reply with the prompter's message before it."""
    for message in messages.values():
        parent = messages.get(message.parent)
        if message.role == "assistant" and message.best and parent and parent.role == "prompter":
            yield [parent, message]


def _example(path: list[Message], data: Data) -> Example:
    group = group_of(path[0].row, data, text_of(path[0].row, "message_tree_id"))
    if data.format == "text":
        texts = [f"### Human: {a.text}### Assistant: {b.text}" for a, b in pairwise(path)]
        return Example([], texts[0], group, row=path[0].number)
    return Example([{"role": ROLES[m.role], "content": m.text} for m in path], "", group, row=path[0].number)
