"""A title by the chat's model, on both engines: only while nobody else wants the engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chat.context import TurnState
from chat.conversation import Conversation
from chat.llama_server import find_binary
from chat.model_host import Host
from chat.reply import Sessions
from chat.titles import titled
from core.engine import Sampling
from core.registry import Entry, Registry, Source
from tests.integration.scripted_gguf import scripted
from tests.unit.kept_chats import chat_of

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module", params=["in-process", "llama-server"])
def sessions(
    request: pytest.FixtureRequest, embedded_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sessions]:
    if request.param == "llama-server" and not find_binary():
        pytest.skip("no llama-server here; run: make test")
    folder = tmp_path_factory.mktemp("titles")
    file = folder / "scripted.gguf"
    scripted(embedded_model, file, ["Title", ":", " Water", " in", " winter"], TEMPLATE, [])
    entries = {
        "scripted": Entry(sources=[Source(path=str(file))], n_ctx=512),
        "real": Entry(sources=[Source(path=str(embedded_model))], n_ctx=4096),
    }
    with closing(Host(Registry(folder / "models.json", entries), request.param)) as host:
        yield Sessions(host)


def asked(text: str, max_tokens: int) -> Conversation:
    chat = Conversation(model="real", sampling=Sampling(max_tokens=max_tokens, temperature=0))
    chat.say(text)
    return chat


def test_the_model_gives_a_title_and_the_chat_is_as_it_was(sessions: Sessions) -> None:
    tree = chat_of("What do whales do?", "They swim.", title="What do whales do?", model="scripted")
    before = tree.rows()
    assert titled(sessions, tree, "title") == "Water in winter"
    assert tree.rows() == before


def test_a_title_gives_way_to_whoever_comes(sessions: Sessions) -> None:
    begun, states = threading.Event(), list[TurnState]()
    idle = asked("Count from one to a thousand, in words.", 3000)

    def write() -> None:
        for state in sessions.reply_when_idle("title", idle):
            states.append(state)
            if state.generated_tokens:
                begun.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(120)
    reply = [state for state in sessions.reply("tab", asked("Say hello.", 4)) if state.generated_tokens]
    thread.join(120)
    assert reply[-1].done
    assert states[-1].stats.finish_reason == "cancelled"
    assert states[-1].stats.generated_tokens < 3000


def test_a_title_is_not_begun_while_somebody_is_answered(sessions: Sessions) -> None:
    reply = sessions.reply("tab", asked("Count from one to a hundred, in words.", 200))
    next(state for state in reply if state.generated_tokens)
    assert list(sessions.reply_when_idle("title", asked("Say hello.", 4))) == []
    sessions.stop("tab")
    assert [*reply][-1].stats.finish_reason == "cancelled"
    assert [*sessions.reply_when_idle("title", asked("Say hello.", 4))][-1].text
