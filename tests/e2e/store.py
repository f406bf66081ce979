"""Puts a chat into the browser as the page keeps it, for what a small model won't say."""

from __future__ import annotations

from typing import Any

from chat.conversation import read_chat
from chat.tree import Chat, Tree, title_of
from tests.e2e.person import Person


def put_chat(person: Person, messages: list[dict[str, str]], **more: Any) -> Tree:
    """Keep a chat and open it."""
    conversation = read_chat({"messages": messages, **more})
    settings = conversation.model_dump(include={"model", "system_prompt", "sampling", "left_out"})
    title = title_of(conversation.messages[0].content)
    tree = Tree(Chat.model_validate(settings | {"title": title}))
    for message in conversation.messages:
        tree.add(message, model=conversation.model)
    put_tree(person, tree)
    return tree


def put_tree(person: Person, tree: Tree) -> None:
    person.page.evaluate("(rows) => window.tune2chat.store.put(rows)", tree.rows())
    person.page.evaluate("(id) => sessionStorage.setItem('tune2chat-open', id)", tree.chat.id)
    person.reload()
