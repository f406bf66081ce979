"""What a model of a menu answers in the app's own chat, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chat.conversation import Conversation
from chat.model_host import Host
from chat.reply import Sessions
from core.engine import Sampling
from core.registry import load_registry


def answers(root: Path, name: str, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """The greedy reply to each prompt, in a chat of its own."""
    host = Host(load_registry(root / "models.json"), "in-process")
    found = []
    for prompt in prompts:
        chat = Conversation(model=name, sampling=Sampling(temperature=0, max_tokens=max_tokens))
        chat.say(prompt)
        list(Sessions(host).reply("test", chat))
        found.append(chat.messages[-1].content)
    host.close()
    return found
