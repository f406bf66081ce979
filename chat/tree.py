"""A chat that keeps all of its branches: what is edited or tried again stands beside what was there.

Each message knows the one before it; the chat knows its leaf, the last message of the branch that is shown.
Rows, a chat's and its messages', are what is kept: in the browser for visitors, in a database for people who
signed in. Both come back from where others can write: checked.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from chat.conversation import Conversation, Message
from chat.settings import ChatSettings, Finite, Name, Strengths, Text
from core.errors import ChatError

MAX_MESSAGES = 20_000  # of one chat, all branches together
TITLE_CHARACTERS = 60

Id = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
Title = Annotated[Text, Field(max_length=200)]
YEAR_10000 = 253_402_300_800  # in seconds since 1970
Time = Annotated[Finite, Field(ge=0, lt=YEAR_10000)]  # seconds since 1970


def new_id() -> str:
    """A name that nobody can guess: a visitor's running reply is found by its chat's."""
    return secrets.token_urlsafe(16)


def title_of(question: str) -> str:
    """What a chat is called by its first question: the beginning, on one line, in whole words."""
    line = " ".join(question[:1_000].split())
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[: TITLE_CHARACTERS - 1]
    words = cut.rpartition(" ")[0]
    return (words if len(words) > TITLE_CHARACTERS // 2 else cut) + "…"


class Node(BaseModel):
    """A message in its place: after `parent`, or the first of its branch where that is empty."""

    model_config = ConfigDict(extra="forbid")

    id: Id = Field(default_factory=new_id)
    parent: Id | Literal[""] = ""
    at: Time = Field(default_factory=time.time)  # when it began
    message: Message
    model: Name = ""  # that wrote it
    adapters: Strengths = Field(default_factory=dict)  # with these strengths
    vote: Literal[-1, 0, 1] = 0
    edited: bool = False  # a reply that a person rewrote


class Compared(BaseModel):
    """Two replies to the last question that wait for a vote, left and right."""

    model_config = ConfigDict(extra="forbid")

    nodes: tuple[Id, Id]
    blind: bool = False  # whose they are is told after the vote


class Chat(ChatSettings):
    """A chat's row: how it is listed, which branch is shown, and its settings, which are of that branch."""

    id: Id = Field(default_factory=new_id)
    title: Title = ""
    made: Time = Field(default_factory=time.time)
    changed: Time = Field(default_factory=time.time)
    pinned: bool = False
    leaf: Id | Literal[""] = ""
    compared: Compared | None = None


class Tree:
    """A chat and all of its messages, those before others first."""

    def __init__(self, chat: Chat | None = None, nodes: Iterable[Node] = ()) -> None:
        self.chat, self.nodes = chat or Chat(), {node.id: node for node in nodes}

    @classmethod
    def read(cls, chat: Any, rows: Any) -> Tree:
        """Read rows as they were kept, in any order. Raises ChatError: they aren't a tree, or hold what a
        chat can't."""
        if not isinstance(rows, list) or len(rows) > MAX_MESSAGES:
            raise ChatError(f"A chat has a list of messages, at most {MAX_MESSAGES:,}.")
        try:
            tree = cls(Chat.model_validate(chat), map(Node.model_validate, rows))
        except ValidationError as error:
            raise ChatError(f"This is no chat of ours: {reason_of(error)}.") from None
        if len(tree.nodes) < len(rows):
            raise ChatError("This chat has two messages of one id.")
        tree.check()
        return tree

    def check(self) -> None:
        """Put the messages in the order in which they were written, each after the one that it follows.

        Raises ChatError: one hangs on none that is there, or in a circle, or follows one of its own side.
        """
        children, waiting = self.children(), [""]
        places: dict[str, tuple[float, int]] = {"": (0.0, 0)}
        while waiting:
            parent = waiting.pop()
            (at, depth), role = places[parent], self._role(parent)
            for child in children.get(parent, []):
                if self._role(child) == role:
                    raise ChatError("In a chat, questions and replies take turns.")
                # Clocks are set back: a reply isn't before its question, whatever they said.
                places[child] = (max(at, self.nodes[child].at), depth + 1)
                waiting.append(child)
        if len(places) <= len(self.nodes):
            raise ChatError("This chat has messages whose beginning is missing.")
        self.nodes = {name: self.nodes[name] for name in sorted(self.nodes, key=places.__getitem__)}
        if self.chat.leaf not in places:
            self.chat.leaf = next(reversed(self.nodes), "")

    def _role(self, name: str) -> str:
        """Whose message it is; before the first question, it is as if the assistant had spoken."""
        return self.nodes[name].message.role if name else "assistant"

    def children(self) -> dict[str, list[str]]:
        """The messages that follow each one, in the order in which they were written."""
        found: dict[str, list[str]] = {}
        for node in self.nodes.values():
            found.setdefault(node.parent, []).append(node.id)
        return found

    def branch(self, leaf: str | None = None) -> list[Node]:
        """The messages from the first one to `leaf`, or to that of the chat."""
        found, name = [], self.chat.leaf if leaf is None else leaf
        while name:
            found.append(self.node(name))
            name = found[-1].parent
        return found[::-1]

    def node(self, name: Any) -> Node:
        """The message of this id. Raises ChatError: the page may be older than the chat."""
        node = self.nodes.get(name) if isinstance(name, str) else None
        if node is None:
            raise ChatError("This message is not in the chat any more. Reload the page.")
        return node

    def add(self, message: Message, parent: str | None = None, **about: Any) -> Node:
        """Put `message` after `parent`, or at the end of the branch that is shown, and show its branch.

        Raises ChatError: the chat is full, or `parent` isn't in it, or is of the same side.
        """
        if len(self.nodes) >= MAX_MESSAGES:
            raise ChatError(f"This chat has {MAX_MESSAGES:,} messages. Begin a new one.")
        parent = self.chat.leaf if parent is None else parent
        if parent:
            self.node(parent)
        if self._role(parent) == message.role:
            raise ChatError("In a chat, questions and replies take turns.")
        node = Node(message=message, parent=parent, **about)
        if node.id in self.nodes:
            raise ChatError("This message is in the chat already.")
        self.nodes[node.id] = node
        self.chat.leaf = node.id
        return node

    def newest(self, name: str) -> str:
        """Where the branch of this message ends, of several the one that was begun last."""
        children, leaf = self.children(), self.node(name).id
        while after := children.get(leaf):
            leaf = after[-1]
        return leaf

    def pair(self) -> list[Node]:
        """The two replies that wait for a vote, if both are there, at the end of the branch that is shown."""
        names = self.chat.compared.nodes if self.chat.compared else ()
        pair = [self.nodes[name] for name in dict.fromkeys(names) if name in self.nodes]
        places = {(node.parent, node.message.role) for node in pair}
        waits = self.chat.leaf in names and len(pair) == 2 and places == {(pair[0].parent, "assistant")}
        return pair if waits else []

    def conversation(self, leaf: str | None = None) -> Conversation:
        """The branch as one turn needs it; its messages are the tree's own, and change with them."""
        messages = [node.message for node in self.branch(leaf)]
        return Conversation(**self.chat.settings(), messages=messages)

    def rows(self) -> dict[str, Any]:
        """The chat as it is kept and sent: `chat`, and `messages`, each after the one that it follows."""
        return {
            "chat": self.chat.model_dump(mode="json"),
            "messages": [node.model_dump(mode="json") for node in self.nodes.values()],
        }


def reason_of(error: ValidationError) -> str:
    """What is wrong first, and where, without the values."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where[:100]}: {first['msg']}" if where else str(first["msg"])
