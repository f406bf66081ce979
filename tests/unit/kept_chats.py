"""Chats to be kept by tests."""

from __future__ import annotations

from chat.conversation import Message
from chat.kept import Kept
from chat.tree import Chat, Tree


def said(text: str, role: str = "user") -> Message:
    return Message.model_validate({"role": role, "content": text})


def chat_of(*texts: str, title: str = "T", **about: object) -> Tree:
    made = Tree(Chat.model_validate({"title": title} | about))
    for i, text in enumerate(texts):
        made.add(said(text, ("user", "assistant")[i % 2]))
    return made


def put(kept: Kept, user: str, tree: Tree) -> Tree:
    kept.put(user, tree.chat, tree.nodes.values())
    return tree


def ids(kept: Kept, user: str = "ada") -> list[str]:
    return [chat["id"] for chat in kept.list(user)]
