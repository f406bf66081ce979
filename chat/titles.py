"""Titles that a chat's own model gives it after the first turn, while nobody wants anything of the engine."""

from __future__ import annotations

import re

from chat.conversation import Message
from chat.reply import Sessions
from chat.tree import TITLE_CHARACTERS, Tree, title_of
from core.engine import Sampling
from core.errors import ChatError

MAX_WORDS = 6
ASK = f"Give this chat a title of at most {MAX_WORDS} words. Answer with the title alone."
MAX_TOKENS = 24

_LABEL = re.compile(r"^\s*(?:title\s*:)?\s*", re.IGNORECASE)
_AROUND = " \t#*_\"'`“”„«».:"


def wants_title(tree: Tree) -> bool:
    """Whether the chat has had one whole turn, and nobody has given it a title."""
    branch = tree.branch()
    if len(tree.nodes) != 2 or len(branch) != 2 or branch[1].message.finish_reason != "stop":
        return False
    return tree.chat.title == title_of(branch[0].message.content)


def titled(sessions: Sessions, tree: Tree, key: str) -> str:
    """Have the chat's model give it a title; nothing where others want the engine, or the model says more.

    The question stands at the end of the chat, whose prompt is in the engine's cache still.
    """
    conversation = tree.conversation()
    conversation.messages.append(Message(role="user", content=ASK))
    conversation.json_schema, conversation.sampling = None, Sampling(max_tokens=MAX_TOKENS, temperature=0)
    try:
        for _ in sessions.reply_when_idle(key, conversation):
            pass
    except ChatError:
        return ""  # nobody asked for it
    last = conversation.messages[-1]
    return title_in(last.content) if last.role == "assistant" and last.finish_reason == "stop" else ""


def title_in(reply: str) -> str:
    """The title that a reply is, without what models put around one; nothing if it is something else."""
    lines = [line for line in reply.splitlines() if line.strip()]
    words = _LABEL.sub("", lines[0].strip(_AROUND)).strip(_AROUND).split() if len(lines) == 1 else []
    title = " ".join(words)
    return title if len(words) <= MAX_WORDS and len(title) <= TITLE_CHARACTERS else ""
