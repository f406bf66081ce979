"""A host whose engines are elsewhere, chats with it, and engines that it can have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from chat.conversation import Conversation
from chat.llama_server import LlamaServerEngine
from chat.model_host import Host
from chat.remote import Endpoint
from chat.remote_menu import Elsewhere
from chat.reply import Sessions
from core.engine import Request, Sampling
from core.registry import Registry
from tests.integration.stranger import EVENTS, Answer, Stranger, event, models, said

GREEDY = Sampling(temperature=0, max_tokens=24, seed=1)
NOTHING = Registry(Path("models.json").resolve())


@contextmanager
def opened(
    urls: Sequence[str], keys: Sequence[str] = (), registry: Registry = NOTHING, chosen: str = ""
) -> Iterator[Host]:
    there = Elsewhere(",".join(urls), ",".join(keys))
    host = Host(there.menu(registry, chosen), elsewhere=there)
    try:
        yield host
    finally:
        host.close()


def endpoints(host: Host) -> list[Endpoint]:
    assert host.elsewhere
    return host.elsewhere.endpoints


def asked(host: Host, text: str, sampling: Sampling = GREEDY) -> Conversation:
    chat = Conversation(model=host.default, sampling=sampling)
    chat.say(text)
    return chat


def reply(host: Host, chat: Conversation, extend: bool = False) -> Any:
    """The last state of a turn."""
    return list(Sessions(host).reply("tab", chat, extend))[-1]


def address(server: LlamaServerEngine) -> str:
    return f"http://127.0.0.1:{server.port}"


def key(server: LlamaServerEngine) -> str:
    return server.headers["Authorization"].removeprefix("Bearer ")


def kill(server: LlamaServerEngine) -> None:
    for child in psutil.Process().children(recursive=True):
        if child.name() == "llama-server" and server.port in {c.laddr.port for c in child.net_connections()}:
            child.kill()


@contextmanager
def at(servers: list[LlamaServerEngine], registry: Registry, chosen: str = "small") -> Iterator[Host]:
    with opened([address(s) for s in servers], [key(s) for s in servers], registry, chosen) as host:
        yield host


def like_vllm(server: LlamaServerEngine, port: int = 0) -> Stranger:
    """Answers by vLLM's documentation (0.11 and later), with a real model behind it."""

    def complete(body: dict[str, Any]) -> Answer:
        sampling = Sampling(
            temperature=body["temperature"],
            max_tokens=body["max_tokens"],
            repeat_penalty=1,
            seed=body["seed"],
        )
        generation = server.generate(Request(body["prompt"], sampling, logprobs=body.get("logprobs")))

        def events() -> Iterator[bytes]:
            yield b": keep-alive\n\n"
            for chunk in generation:
                told = {
                    "tokens": [token.text.decode("utf-8", "replace") for token in chunk.logprobs],
                    "token_logprobs": [token.logprob for token in chunk.logprobs],
                    "top_logprobs": [{str(t.text): t.logprob for t in token.top} for token in chunk.logprobs],
                }
                choice = {"index": 0, "text": chunk.text, "token_ids": list(chunk.ids), "finish_reason": None}
                choice |= {"logprobs": told if chunk.ids and "logprobs" in body else None}
                yield event({"choices": [choice]})
            ids = [2] if generation.stats.finish_reason == "stop" else []
            end = {"index": 0, "text": "", "token_ids": ids, "finish_reason": generation.stats.finish_reason}
            yield event({"choices": [end]})
            details = {"cached_tokens": generation.stats.cached_tokens}
            usage = {"prompt_tokens": len(body["prompt"]), "prompt_tokens_details": details}
            yield event({"choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"

        return 200, EVENTS, events()

    return Stranger(
        port,
        v1_models=models("small", owned_by="vllm", max_model_len=2048),
        version=said({"version": "0.11.0"}),
        tokenize=lambda body: said({"tokens": server.tokenize(body["prompt"], True)})(body),
        v1_completions=complete,
    )
