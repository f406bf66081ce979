"""llama-server killed under the chats: it is started again, and only the reply in the making is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from chat.conversation import Conversation
from chat.llama_server import LlamaServerEngine, find_binary
from chat.model_host import Host
from chat.reply import Sessions
from core.engine import Sampling
from core.errors import EngineDied
from core.registry import Entry, Registry, Source

pytestmark = pytest.mark.skipif(not find_binary(), reason="no llama-server here; run: make test")
PATIENCE_S = 120  # a busy machine with two cores
BRIEF = Sampling(max_tokens=8, temperature=0)


@pytest.fixture
def sessions(embedded_model: Path) -> Iterator[Sessions]:
    entry = Entry(sources=[Source(path=str(embedded_model))], n_ctx=2048)
    registry = Registry(Path("models.json").resolve(), {"model": entry})
    with closing(Host(registry, "llama-server")) as host:
        yield Sessions(host)


def reply(sessions: Sessions, conversation: Conversation) -> str:
    return [progress.text for progress in sessions.reply("tab", conversation)][-1]


def kill_the_child(engine: object) -> None:
    assert isinstance(engine, LlamaServerEngine)
    (server,) = psutil.Process(engine._process.pid).children()
    server.kill()
    end = time.monotonic() + PATIENCE_S
    while engine.alive():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_dead_llama_server_is_started_again_at_the_next_turn(sessions: Sessions) -> None:
    conversation = Conversation(model="model", sampling=BRIEF)
    conversation.say("Say hello.")
    before = reply(sessions, conversation)
    with sessions.host.use("model") as model:
        kill_the_child(model.engine)
    conversation.messages.pop()
    assert reply(sessions, conversation) == before != ""
    with sessions.host.use("model") as again:
        assert again.replies is model.replies, "what was said keeps its ids"


def test_a_llama_server_killed_in_the_middle_of_a_reply_costs_that_reply_only(sessions: Sessions) -> None:
    conversation = Conversation(model="model", sampling=Sampling(max_tokens=1500, temperature=0))
    conversation.say("Count from one to a thousand, in words.")
    with sessions.host.use("model") as model:
        pass

    def read() -> None:
        for progress in sessions.reply("tab", conversation):
            if progress.generated_tokens and model.engine.alive():
                kill_the_child(model.engine)

    with pytest.raises(EngineDied, match="Retry"):
        read()
    assert [m.role for m in conversation.messages] == ["user", "assistant"]
    assert conversation.can_continue()
    conversation.messages.pop()
    conversation.sampling = BRIEF
    assert reply(sessions, conversation)
