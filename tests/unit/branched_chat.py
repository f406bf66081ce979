"""A chat with branches, votes and an edited reply, to be exported by tests."""

from __future__ import annotations

from typing import Any

from chat.conversation import Message
from chat.tree import Chat, Tree


def said(text: str, role: str = "user", **about: Any) -> Message:
    return Message.model_validate({"role": role, "content": text} | about)


def replied(text: str, **about: Any) -> Message:
    return said(text, "assistant", **about)


def tree() -> Tree:
    """Make a chat with two branches, of which one was edited, a thought, votes and settings of its own."""
    chat = {"title": "T", "system_prompt": "Be brief.", "model": "m", "adapters": {"x": 0.5}, "pinned": True}
    made = Tree(Chat.model_validate(chat | {"json_schema": {"type": "object"}, "sampling": {"seed": 1}}))
    first = made.add(said("Who wrote it?"))
    made.add(replied("Me.", finish_reason="stop"), vote=-1, model="m")
    again = made.add(replied("Seneca.", reasoning_content="An old text."), first.id, vote=1, model="n")
    made.add(said("When?"))
    made.add(replied("In 65."), adapters={"x": 1.0})
    made.add(said("Where?"), again.id)
    where = made.add(replied("In Rom."))
    made.add(replied("In Rome."), where.parent, edited=True)
    return made
