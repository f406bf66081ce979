"""What can be done to a chat: each adds a branch, or shows another one; nothing that was said is lost."""

from __future__ import annotations

from chat.conversation import Message
from chat.tree import Chat, Node, Tree, new_id
from core.errors import ChatError


def ask(tree: Tree, text: str) -> Node:
    """Add a question at the end of the branch; one that never got a reply is left beside it."""
    if not text.strip():
        raise ChatError("The message is empty. Type something to send.")
    parent = tree.chat.leaf
    if parent and tree.nodes[parent].message.role == "user":
        parent = tree.nodes[parent].parent
    return tree.add(Message(role="user", content=text), parent)


def switch(tree: Tree, leaf: str) -> None:
    """Show the branch that ends with `leaf`; how much of it the model sees, its next turn tells."""
    tree.chat.leaf = tree.node(leaf).id
    tree.chat.left_out = tree.chat.tokens = 0


def again(tree: Tree, name: str = "") -> None:
    """Have the question before the reply `name`, or before the last one, answered once more."""
    leaf = name or tree.chat.leaf
    if not leaf:
        raise ChatError("There is nothing to retry yet.")
    node = tree.node(leaf)
    tree.chat.leaf = node.parent if node.message.role == "assistant" else node.id


def edit(tree: Tree, name: str, text: str) -> Node:
    """Put a question in other words beside the one called `name`."""
    node = tree.node(name)
    if node.message.role != "user":
        raise ChatError("This is a reply; editing it asks nothing.")
    if not text.strip():
        raise ChatError("The edited message is empty; the chat stays as it is.")
    return tree.add(Message(role="user", content=text), node.parent)


def rewrite(tree: Tree, name: str, text: str) -> Node:
    """Put a reply as a person would have it beside the one called `name`; what follows it stays there."""
    node = tree.node(name)
    if not text.strip():
        raise ChatError("The edited reply is empty; the chat stays as it is.")
    message = Message(role="assistant", content=text, finish_reason="stop")
    return tree.add(message, node.parent, model=node.model, adapters=node.adapters, edited=True)


def undo(tree: Tree) -> str:
    """Leave the last question and its reply; return the question. They are shown again by `switch`."""
    if not tree.chat.leaf:
        raise ChatError("There is nothing to undo.")
    node = tree.nodes[tree.chat.leaf]
    if node.message.role == "assistant":
        node = tree.nodes[node.parent]
    tree.chat.leaf, tree.chat.tokens = node.parent, 0
    return node.message.content


def branched(tree: Tree, name: str) -> Tree:
    """A new chat that begins with the branch as far as the message called `name`."""
    chat = tree.chat.model_copy(update={"id": new_id(), "pinned": False, "compared": None}, deep=True)
    chat.made, chat.title = Chat().made, f"{chat.title[:180]} (branch)" if chat.title else ""
    copies: list[Node] = []
    for node in tree.branch(tree.node(name).id):
        parent = copies[-1].id if copies else ""
        copies.append(node.model_copy(update={"id": new_id(), "parent": parent}, deep=True))
    other = Tree(chat, copies)
    chat.leaf = copies[-1].id
    chat.left_out = min(chat.left_out, len(copies) - 1)
    return other
