"""Chats whose replies have to be JSON, and chats over a base with adapters: all the way, on both engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chat.context import TurnState
from chat.conversation import Conversation
from chat.llama_server import find_binary
from chat.model_host import Host
from chat.reply import Sessions
from chat.schema_reading import SchemaError
from core.engine import Sampling
from core.entry import Entry, Source
from core.errors import ChatError
from core.lora import Adapter
from core.registry import Registry
from tests.integration.scripted_gguf import edited
from tests.integration.test_requests import write_lora

PET = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "legs": {"type": "integer", "maximum": 4}},
    "required": ["kind", "legs"],
}
GREEDY = Sampling(temperature=0, repeat_penalty=1, max_tokens=40)


@pytest.fixture(scope="module", params=["in-process", "llama-server"])
def sessions(
    request: pytest.FixtureRequest,
    short_model: Path,
    llama_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Sessions]:
    if request.param == "llama-server" and not find_binary():
        pytest.skip("no llama-server here; run: make test")
    folder = tmp_path_factory.mktemp("structured")
    template = (llama_models / "templates" / "Qwen3.5-4B.jinja").read_text()  # its prompt opens a thought
    thinking = edited(short_model, folder / "thinking.gguf", {"tokenizer.chat_template": template})
    adapter = Adapter(path=str(write_lora(folder / "a.gguf", 1)), strength=0)
    entries = {
        "Plain": Entry(sources=[Source(path=str(short_model))], n_ctx=1024),
        "Thinking": Entry(sources=[Source(path=str(thinking))], n_ctx=1024),
        "Adapted": Entry(sources=[Source(path=str(short_model))], n_ctx=1024, adapters=[adapter]),
    }
    with closing(Host(Registry(folder / "models.json", entries), request.param)) as host:
        yield Sessions(host)


def asked(model: str, schema: dict[str, Any] | None = PET, **sampling: Any) -> Conversation:
    chat = Conversation(model=model, json_schema=schema, sampling=GREEDY.model_copy(update=sampling))
    chat.say("Which pet?")
    return chat


def answered(sessions: Sessions, chat: Conversation) -> TurnState:
    *_, state = sessions.reply("tab", chat)
    assert state.done
    return state


@pytest.mark.parametrize("model", ["Plain", "Thinking"])
def test_a_reply_is_json_that_fits_and_has_no_thought(sessions: Sessions, model: str) -> None:
    chat = asked(model, {"const": {"kind": "cat", "legs": 4}})
    state = answered(sessions, chat)
    last = chat.messages[-1]
    assert json.loads(last.content) == {"kind": "cat", "legs": 4}
    assert (last.reasoning_content, last.thinking, state.stats.fault) == ("", False, "")
    assert state.prompt_tokens > answered(sessions, asked(model, None, max_tokens=1)).prompt_tokens + 5
    chat.say("And then?")
    answered(sessions, chat)
    assert json.loads(chat.messages[-1].content) == {"kind": "cat", "legs": 4}


def test_what_is_no_whole_json_or_does_not_fit_is_said(sessions: Sessions) -> None:
    cut = asked("Plain", max_tokens=3)
    assert "cut by its length" in answered(sessions, cut).stats.fault
    with pytest.raises(SchemaError, match="can't be continued"):
        list(sessions.reply("tab", cut, extend=True))
    far = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "maxProperties": 0}
    assert "doesn't fit the JSON schema" in answered(sessions, asked("Plain", far)).stats.fault


def test_a_schema_that_is_refused_costs_a_sentence(sessions: Sessions) -> None:
    with pytest.raises(SchemaError, match="'not' at the root"):
        answered(sessions, asked("Plain", {"not": {}}))


def test_a_chat_chooses_its_adapters(sessions: Sessions) -> None:
    replies = []
    for adapters in ({}, {"a": 2.0}, {"a": 0.0}, {"a": 2.0}):
        chat = asked("Adapted", None, max_tokens=12)
        chat.adapters = adapters
        answered(sessions, chat)
        replies.append(chat.messages[-1].content)
    assert replies[0] == replies[2] != replies[1] == replies[3]
    chat.adapters = {"b": 1.0}
    with pytest.raises(ChatError, match="no adapter called 'b'; it has: a"):
        answered(sessions, chat)
