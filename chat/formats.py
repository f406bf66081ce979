"""Chats that come in from files and go out as files: whole ones, and rows that train/ reads.

| comes in | known by |
|---|---|
| our own JSON, of any number of chats | `tune2chat`, `chats`; one chat alone by `chat`, `messages` |
| a chat that *Save as JSON* made, or any list of messages | `messages` with `role` and `content` |
| ChatGPT's and llama.cpp's exports (`chat.other_chats`) | `mapping`; `conv`, or lines with `session` |
| lines (JSONL) of any of these | how they begin |

What can't come along is left out, counted and told; a file of which nothing can is refused with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from itertools import takewhile
from typing import Any

from pydantic import ValidationError

from chat.chat_files import read_values
from chat.conversation import read_chat
from chat.grow import Item, Notes, grow
from chat.other_chats import of_chatgpt, of_llama_cpp
from chat.tree import Chat, Node, Tree, new_id, reason_of
from core.errors import ChatError

VERSION = 1  # of our own JSON
MAX_EXPORT = 100 * 2**20  # of rows that go out: each has all that was said before it
MAX_REASONS = 5  # that are told

_OURS = "tune2chat"
_UNKNOWN = "entries of a kind that isn't known here"


class Imported(list[Tree]):
    """The chats of a file. `notes` counts what was left out or changed, by what it is."""

    def __init__(self, trees: Iterable[Tree] = (), notes: Notes | None = None) -> None:
        super().__init__(trees)
        self.total, self.notes = len(self), notes or Notes()

    def add(self, other: Imported) -> None:
        """Count what came in by another piece of the same file."""
        self.total += other.total
        self.notes.update(other.notes)

    def told(self) -> str:
        """What came in and what didn't, in a sentence or two."""
        notes = [f"{what} ({count:,})" for what, count in self.notes.most_common(MAX_REASONS)]
        notes += ["more of other kinds"] if len(self.notes) > MAX_REASONS else []
        came = f"{self.total:,} chat{'' if self.total == 1 else 's'} came in."
        return f"{came} Not as in the file: {'; '.join(notes)}." if notes else came


def read_chats(data: bytes, own: Collection[str] = ()) -> Imported:
    """Read the chats of a file, or of a piece of one (chat/screen_pieces.js), with new ids.

    Raises ChatError: there is none that can be read.
    Those of our own JSON whose id is in `own`, ids of chats that the same person has, keep theirs.
    """
    notes, trees, left, reason = Notes(), list[Tree](), set(own), ""
    for record in _records(data, notes):
        seen = Notes()
        try:
            tree = _read(record, left, seen)
        except ChatError as error:
            reason = reason or str(error).rstrip(".")
            notes[f"left out: {str(error).rstrip('.')}"] += 1
            continue
        left.discard(tree.chat.id)
        notes.update(seen)
        trees.append(tree)
    if not trees:
        why = f": {reason}" if reason else ""
        raise ChatError(
            f"No chat could be read of this file{why}. What is read: ChatGPT's conversations.json, exports "
            "of llama.cpp's web UI, and JSON that was saved here."
        )
    return Imported(trees, notes)


def _records(data: bytes, notes: Notes) -> list[Any]:
    """The chats in a file, each in whatever form it has. Raises ChatError."""
    found: list[Any] = []
    for value in read_values(data, notes):
        if isinstance(value, Mapping) and _OURS in value:
            found += _own_chats(value)
        elif isinstance(value, list) and not _is_message(value[:1]):
            found += value
        else:
            found.append(value)
    return _sessions(found, notes)


def _own_chats(value: Mapping[str, Any]) -> list[Any]:
    version, chats = value[_OURS], value.get("chats")
    if isinstance(version, int) and version > VERSION:
        raise ChatError("This file was saved by a newer version of this app. Update it to read the file.")
    if version != VERSION or not isinstance(chats, list):
        raise ChatError("This file says that it was saved here, but has no list of chats.")
    return chats


def _is_message(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], Mapping) and "role" in value[0] and "mapping" not in value[0]


def _sessions(records: list[Any], notes: Notes) -> list[Any]:
    """Put the lines together by which llama.cpp writes a chat: a session, then its messages."""
    found: list[Any] = []
    for record in records:
        kind = record.get("type") if isinstance(record, Mapping) else None
        if kind == "session":
            found.append({"conv": record, "messages": []})
        elif kind != "message":
            found.append(record)
        elif found and isinstance(found[-1], dict) and "conv" in found[-1]:
            found[-1]["messages"].append(record.get("message"))
        else:
            notes["messages before any chat left out"] += 1
    return found


def _read(record: Any, own: Collection[str], notes: Notes) -> Tree:
    """Read one chat of any form. Raises ChatError."""
    if isinstance(record, list) and _is_message(record[:1]):
        return _saved(record, notes)
    if not isinstance(record, Mapping):
        raise ChatError(_UNKNOWN)
    messages = record.get("messages")
    if isinstance(record.get("mapping"), Mapping):
        return of_chatgpt(record, notes)
    if isinstance(conv := record.get("conv"), Mapping) and isinstance(messages, list):
        return of_llama_cpp(conv, messages, notes)
    if isinstance(record.get("chat"), Mapping) and isinstance(messages, list):
        tree = Tree.read(record["chat"], messages)
        return tree if tree.chat.id in own else _renamed(tree)
    if isinstance(messages, list):
        return _saved(record, notes)
    raise ChatError(_UNKNOWN)


def _saved(record: Any, notes: Notes) -> Tree:
    """A chat without branches, as *Save as JSON* made it, or any program that speaks OpenAI's API."""
    try:
        said = read_chat(record)
        kept = said.model_dump(include={"model", "system_prompt", "sampling", "adapters", "json_schema"})
        chat = Chat.model_validate(kept)
    except ValidationError as error:
        raise ChatError(reason_of(error)) from None
    items = [
        Item(str(n), str(n - 1) if n else "", m.role, m.content, m.reasoning_content)
        for n, m in enumerate(said.messages)
    ]
    return grow(chat, items, str(len(items) - 1), notes)


def _renamed(tree: Tree) -> Tree:
    """The same with new ids: two people may have been given one file, and must not meet in one chat."""
    names = {"": ""} | {name: new_id() for name in tree.nodes}
    pair, compared = tuple(names[node.id] for node in tree.pair()), tree.chat.compared
    compared = compared.model_copy(update={"nodes": pair}) if compared and pair else None
    update = {"id": new_id(), "leaf": names[tree.chat.leaf], "compared": compared}
    chat = tree.chat.model_copy(update=update)
    about = ((node, {"id": names[node.id], "parent": names[node.parent]}) for node in tree.nodes.values())
    return Tree(chat, (node.model_copy(update=new) for node, new in about))


def to_json(trees: Iterable[Tree]) -> str:
    """The chats with all of their branches, votes and settings, as `read_chats` takes them."""
    return _line({_OURS: VERSION, "chats": [tree.rows() for tree in trees]}, indent=2)


def to_markdown(tree: Tree) -> str:
    """The branch that is shown, as a document."""
    return tree.conversation().to_markdown()


def to_training_jsonl(trees: Iterable[Tree]) -> str:
    """A row a chat, of the branch that is shown: `{"messages": [...]}`, as SFTConfig's data.

    Replies that were disliked or cut are context only: they weigh 0, as in OpenAI's files. A chat without
    another one has no row.
    """
    rows = _Rows()
    for tree in trees:
        branch = list(takewhile(lambda node: node.message.content.strip(), tree.branch()))
        if branch and branch[-1].message.role == "user":
            branch.pop()  # nobody has answered it
        weights = [_weight(node) for node in branch]
        if 1 not in weights:
            continue
        system, messages = _prompt(tree, branch)
        told = [
            message | ({"weight": 0} if weight == 0 else {})
            for message, weight in zip(messages, weights, strict=True)
        ]
        rows.add({"messages": system + told})
    return rows.text()


def _weight(node: Node) -> int | None:
    """Whether a reply is to be learnt; None for a question."""
    if node.message.role == "user":
        return None
    cut = node.message.thinking or node.message.finish_reason in ("length", "cancelled")
    return int(node.vote >= 0 and not cut)


def to_preferences_jsonl(trees: Iterable[Tree]) -> str:
    """A row a pair of replies to one question: `{"prompt", "chosen", "rejected"}`, as DPOConfig's data.

    Chosen is what was liked, or written anew by a person; rejected what was disliked, or stood there when it
    was written anew. Where there are several of both, each is in one pair or more.
    """
    rows = _Rows()
    for tree in trees:
        for question, names in tree.children().items():
            replies = [tree.nodes[name] for name in names if tree.nodes[name].message.content.strip()]
            if not question or tree.nodes[question].message.role != "user":
                continue
            if pairs := _pairs(replies):
                system, messages = _prompt(tree, tree.branch(question))
                for pair in pairs:
                    chosen, rejected = (_prompt(tree, [node])[1] for node in pair)
                    rows.add({"prompt": system + messages, "chosen": chosen, "rejected": rejected})
    return rows.text()


def _pairs(replies: list[Node]) -> list[tuple[Node, Node]]:
    """Pairs of a better and a worse reply, of one question's in the order in which they were written."""
    better = [node for node in replies if node.vote == 1 or (node.edited and node.vote == 0)]
    worse = [node for node in replies if node.vote == -1]
    count = max(len(better), len(worse)) if better and worse else 0
    pairs = [(better[n % len(better)], worse[n % len(worse)]) for n in range(count)]
    original: Node | None = None
    for node in replies:
        if node.edited and node.vote >= 0 and original:
            pairs.append((node, original))
        if not node.edited and node.vote == 0:
            original = node
    return [(one, other) for one, other in pairs if _words(one) != _words(other)]


def _words(node: Node) -> list[str]:
    return node.message.content.split()


def _prompt(tree: Tree, branch: list[Node]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system message, if the chat has one, and the others, as chat APIs and train/ have them."""
    conversation = tree.conversation("")
    system = conversation.prompt()
    conversation.messages = [node.message for node in branch]
    return [*system], [*conversation.prompt()[len(system) :]]


class _Rows:
    """Lines of JSON. Raises ChatError where they become too many."""

    def __init__(self) -> None:
        self._lines, self._size = list[str](), 0

    def add(self, row: Any) -> None:
        self._lines.append(_line(row))
        self._size += len(self._lines[-1])
        if self._size > MAX_EXPORT:
            raise ChatError(f"These are over {MAX_EXPORT // 2**20} MB of rows. Export fewer chats at once.")

    def text(self) -> str:
        return "".join(self._lines)


def _line(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode(errors="replace").decode() + "\n"
