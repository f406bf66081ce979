"""The defects of llama-cpp-agent's providers (A7 to A13), shown on a server of our own; a chat has none.

Our provider draws from core/engine.py, so none of the library's code between a socket and a text is used.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from llama_cpp_agent import LlamaCppAgent
from llama_cpp_agent.llm_output_settings import LlmStructuredOutputSettings, LlmStructuredOutputType
from llama_cpp_agent.providers import (
    LlamaCppPythonProvider,
    LlamaCppServerProvider,
    VLLMServerProvider,
)
from llama_cpp_agent.providers import llama_cpp_server as their_server

from chat.agent import EngineProvider, EngineSettings, start_reply
from chat.conversation import Conversation
from chat.llama_server import find_binary
from chat.model_host import Host
from chat.reply import Sessions
from core.engine import Request, Sampling
from core.registry import Entry, Registry, Source

PLAIN = LlmStructuredOutputSettings(output_type=LlmStructuredOutputType.no_structured_output)
SHORT = Sampling(max_tokens=24, temperature=0, repeat_penalty=1.0)


class Server(ThreadingHTTPServer):
    """Answers each request with `lines`, and keeps what was asked for."""

    lines: list[str]
    asked: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = "".join(f"{line}\n\n" for line in self.server.lines).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.lines, server.asked = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def theirs(server: Server, *lines: str) -> str:
    """What the library's server provider makes of an event stream."""
    server.lines = list(lines)
    provider = LlamaCppServerProvider(f"http://127.0.0.1:{server.server_port}")
    chunks = provider.create_completion("Hi", PLAIN, provider.get_provider_default_settings(), "")
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


@pytest.fixture(scope="module", params=["in-process", "llama-server"])
def sessions(request: pytest.FixtureRequest, embedded_model: Path) -> Iterator[Sessions]:
    if request.param == "llama-server" and not find_binary():
        pytest.skip("no llama-server here; run: make test")
    entry = Entry(sources=[Source(path=str(embedded_model))], n_ctx=1024)
    with closing(Host(Registry(Path("models.json").resolve(), {"model": entry}), request.param)) as host:
        yield Sessions(host)


def ours(sessions: Sessions, text: str, sampling: Sampling = SHORT) -> str:
    """The model's reply to `text`."""
    conversation = Conversation(model="model", sampling=sampling)
    conversation.say(text)
    return [progress.text for progress in sessions.reply("tab", conversation)][-1]


def test_a7_a_streamed_reply_streams(sessions: Sessions) -> None:
    settings = LlamaCppPythonProvider(None).get_provider_default_settings()
    assert not settings.is_streaming(), "so the agent takes the whole answer for a stream, and fails"
    assert EngineSettings(Request((), SHORT)).is_streaming()
    conversation = Conversation(model="model", sampling=SHORT)
    conversation.say("Count from one to twenty, in words.")
    assert len([p for p in sessions.reply("tab", conversation) if p.generated_tokens]) > 1


def test_a8_nothing_uses_the_chat_call_of_a_provider(sessions: Sessions) -> None:
    provider = LlamaCppPythonProvider(None)
    with pytest.raises(KeyError, match="n_predict"):
        provider.create_chat_completion([], PLAIN, provider.get_provider_default_settings())
    with sessions.host.use("model") as model, pytest.raises(TypeError, match="token ids"):
        EngineProvider(model.engine).create_chat_completion([], PLAIN, EngineSettings(Request((), SHORT)))


def test_a9_a_reply_may_hold_the_text_data(sessions: Sessions, server: Server) -> None:
    assert theirs(server, 'data: {"content": "see data: x=1"}') == "see  x=1"
    assert "data:" in ours(sessions, 'Repeat exactly: "see data: x=1"')


def test_a10_comments_and_the_end_mark_of_a_stream_are_no_replies(sessions: Sessions, server: Server) -> None:
    with pytest.raises(json.JSONDecodeError):
        theirs(server, ": still here", 'data: {"content": "x"}')
    with pytest.raises(json.JSONDecodeError):
        theirs(server, 'data: {"content": "x"}', "data: [DONE]")
    assert ours(
        sessions, "Say hello."
    )  # llama-server sends both kinds of line; chat/llama_server.py reads them


def test_a11_the_repetition_penalty_is_heeded(sessions: Sessions, server: Server) -> None:
    theirs(server, 'data: {"content": "x"}')
    assert server.asked[0]["repeat_penalty"] == 1.1
    assert "penalties" not in server.asked[0]["samplers"], "so llama-server never applies it"
    question = "Write only emojis: 🎉🎉🎉🚀🚀"
    assert ours(sessions, question) != ours(
        sessions, question, SHORT.model_copy(update={"repeat_penalty": 2.0})
    )


def test_a12_a_reply_can_be_stopped_before_its_first_word(sessions: Sessions) -> None:
    assert "timeout" not in inspect.getsource(their_server), "their requests block without a bound"
    conversation = Conversation(model="model", sampling=SHORT.model_copy(update={"max_tokens": 900}))
    conversation.say("Tell me everything about whales.")
    reply = sessions.reply("tab", conversation)
    next(reply)
    sessions.stop("tab")
    *_, progress = reply
    assert progress.stats.finish_reason == "cancelled"
    assert progress.generated_tokens < 100


def test_a13_replies_are_as_long_as_asked_for_and_end_at_ids(sessions: Sessions) -> None:
    # Their provider for vLLM needs libraries that the app doesn't have: its settings can be looked at.
    settings = inspect.getmodule(VLLMServerProvider).VLLMServerSamplingSettings()  # type: ignore[union-attr]
    assert settings.max_tokens == 16
    assert settings.get_additional_stop_sequences() is None, "a formatter's stops never reach vLLM"
    conversation = Conversation(model="model", sampling=SHORT)
    conversation.say("Count from one to a hundred, in words.")
    stats = list(sessions.reply("tab", conversation))[-1].stats
    assert (stats.generated_tokens, stats.finish_reason) == (24, "length")
    conversation = Conversation(model="model", sampling=SHORT.model_copy(update={"max_tokens": 200}))
    conversation.say("Say only: yes")
    assert list(sessions.reply("tab", conversation))[-1].stats.finish_reason == "stop"


def test_the_agent_itself_is_used_and_keeps_nothing_between_turns(sessions: Sessions) -> None:
    with sessions.host.use("model") as model:
        messages = [{"role": "user", "content": "Say hello."}]
        ids = model.encoder.encode(messages)
        replies = [
            "".join(start_reply(EngineProvider(model.engine), messages, Request(ids, SHORT)))
            for _ in range(2)
        ]
    assert replies[0] == replies[1] != ""
    assert LlamaCppAgent.__module__.startswith("llama_cpp_agent.")
