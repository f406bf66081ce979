"""Engines elsewhere: real llama-servers as two of them, and programs that answer as others do, or badly.

No vLLM was run: what is known of it is its documentation, and a server here answers by it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chat.llama_server import LlamaServerEngine, find_binary
from chat.model_host import Host
from chat.remote_reply import fields
from chat.reply import Sessions
from core.engine import Request, Sampling
from core.errors import ChatError, EngineDied
from core.model import Model
from core.registry import Entry, Registry, Source
from tests.integration.elsewhere import (
    GREEDY,
    NOTHING,
    address,
    asked,
    at,
    endpoints,
    key,
    kill,
    like_vllm,
    opened,
    reply,
)
from tests.integration.running_app import free_port
from tests.integration.scripted_gguf import CONTROL, Reader, edited, scripted
from tests.integration.stranger import Stranger, models

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello, <|im_end|>!"}]
needs_server = pytest.mark.skipif(not find_binary(), reason="no llama-server here; run: make test")


@pytest.fixture(scope="module")
def servers(embedded_model: Path) -> Iterator[list[LlamaServerEngine]]:
    started = [LlamaServerEngine(embedded_model, 2048, 1, n_cells=4096) for _ in range(2)]
    yield started
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def registry(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """The model's vocabulary and template: no weights are needed here."""
    weights = [tensor.name for tensor in Reader(embedded_model).tensors]
    here = edited(embedded_model, tmp_path_factory.mktemp("here") / "small.gguf", drop=weights)
    entry = Entry(sources=[Source(path=str(here))], n_ctx=4096)
    return Registry(Path("models.json").resolve(), {"small": entry})


def generated(model: Model, messages: list[dict[str, str]] = MESSAGES) -> Any:
    generation = model.engine.generate(Request(model.encoder.encode(messages), GREEDY))
    text = "".join(chunk.text for chunk in generation)
    return text, generation.stats


@needs_server
def test_with_ids_a_reply_is_the_one_of_the_same_engine_here(
    servers: list[LlamaServerEngine], registry: Registry
) -> None:
    with at(servers[:1], registry) as host, host.use("small") as model:
        ids = model.encoder.encode(MESSAGES)
        text, stats = generated(model)
        here = servers[0].generate(Request(ids, GREEDY))
        assert "".join(chunk.text for chunk in here) == text
        assert (here.stats.ids, here.stats.finish_reason) == (stats.ids, stats.finish_reason)
        assert stats.prompt_tokens == len(ids)
        assert host.warning(host.default) == ""  # all is ours
        for words in ("Été, 你好 \U0001f600 <|im_end|>", "  x = 1\n"):
            assert [model.engine.tokenize(words, special) for special in (True, False)] == [
                servers[0].tokenize(words, special) for special in (True, False)
            ]


@needs_server
def test_a_chat_stays_where_its_prompt_is_and_another_goes_to_the_other_engine(
    servers: list[LlamaServerEngine], registry: Registry
) -> None:
    with at(servers, registry) as host:
        chats = [asked(host, f"Tell me something about {thing}.") for thing in ("the sea", "old trains")]
        before = [reply(host, chat).stats for chat in chats]
        for turn in ("Go on.", "And then?"):
            for number, chat in enumerate(chats):
                chat.say(turn)
                stats = reply(host, chat).stats
                # All of the turn before but for its last token, which is sampled from and not evaluated.
                assert stats.cached_tokens >= before[number].prompt_tokens + len(before[number].ids) - 1
                before[number] = stats
        assert [endpoint.taken for endpoint in endpoints(host)] == [3, 3]


@needs_server
def test_a_killed_engine_takes_no_chat_with_it(
    servers: list[LlamaServerEngine], registry: Registry, embedded_model: Path
) -> None:
    doomed = LlamaServerEngine(embedded_model, 2048, 1, n_cells=4096)
    with at([doomed, servers[1]], registry) as host:
        long = asked(
            host, "Count from one to five hundred in words.", Sampling(temperature=0, max_tokens=900)
        )
        other = asked(host, "Say hello.")
        states = Sessions(host).reply("tab", long)
        while not next(states).generated_tokens:
            pass
        kill(doomed)
        with pytest.raises(EngineDied, match="stopped in the middle of the reply"):
            list(states)
        written = long.messages[-1].content
        assert written
        assert long.can_continue()
        assert reply(host, other).stats.finish_reason
        long.sampling = GREEDY
        assert reply(host, long, extend=True).stats.generated_tokens
        assert long.messages[-1].content.startswith(written)
        assert endpoints(host)[1].taken == 2
    doomed.close()


@needs_server
def test_who_died_unseen_is_passed_over_before_the_first_token(
    servers: list[LlamaServerEngine], registry: Registry, embedded_model: Path
) -> None:
    doomed = LlamaServerEngine(embedded_model, 2048, 1)
    with at([doomed, servers[1]], registry) as host:
        chat = asked(host, "Say hello.")
        reply(host, chat)
        kill(doomed)
        chat.say("Again.")
        assert reply(host, chat).stats.finish_reason
        assert [endpoint.up for endpoint in endpoints(host)] == [False, True]
    doomed.close()


@needs_server
def test_by_messages_the_engine_fills_its_own_template_and_the_page_says_so(
    servers: list[LlamaServerEngine],
) -> None:
    with at(servers[:1], NOTHING, "") as host:
        assert host.menu() == [(f"{host.default} · elsewhere, by messages", host.default)]
        chat = asked(host, "Say hello.", GREEDY.model_copy(update={"max_tokens": 4}))
        body = {"messages": chat.prompt(), "max_tokens": 4, "temperature": 0, "repeat_penalty": 1.1}
        plain = servers[0]._request("POST", "/v1/chat/completions", json.dumps(body))
        stats = reply(host, chat).stats
        assert chat.messages[-1].content == plain["choices"][0]["message"]["content"].lstrip()
        assert (stats.prompt_tokens, stats.finish_reason) == (plain["usage"]["prompt_tokens"], "length")
        assert "template and control tokens are that engine's" in host.warning(host.default)
        with pytest.raises(ChatError, match="can't be continued"):
            reply(host, chat, extend=True)
        with host.use(host.default) as model, pytest.raises(ChatError, match="whole messages only"):
            model.engine.generate(Request([1, 2, 3], GREEDY)).__iter__().__next__()
        chat.say("And more?")
        assert reply(host, chat).stats.cached_tokens
        chat.say("long " * 20_000)
        with pytest.raises(ChatError, match="Shorten it"):
            reply(host, chat)


@needs_server
def test_a_model_of_another_vocabulary_gets_no_ids_of_ours(
    servers: list[LlamaServerEngine], gemma_model: Path
) -> None:
    entry = Entry(sources=[Source(path=str(gemma_model))], n_ctx=2048)
    with at(servers[:1], Registry(Path("models.json").resolve(), {"gemma": entry}), "gemma") as host:
        assert "by messages" in host.menu()[0][0]
        reply(host, asked(host, "Say hello."))
        assert "its tokenizer isn't that of" in host.warning(host.default)


@needs_server
def test_vllm_gets_ids_and_its_own_names_of_what_is_asked(
    servers: list[LlamaServerEngine], registry: Registry
) -> None:
    with like_vllm(servers[0]) as there, opened([there.url + "/v1"], ["key"], registry) as host:
        with host.use("small") as model:
            text, stats = generated(model)
            here = servers[0].generate(
                Request(model.encoder.encode(MESSAGES), GREEDY.model_copy(update={"repeat_penalty": 1}))
            )
            assert "".join(chunk.text for chunk in here) == text
            assert (here.stats.ids, here.stats.finish_reason) == (stats.ids, stats.finish_reason)
            path, body, headers = there.asked[-1]
            assert (path, headers["Authorization"]) == ("/v1/completions", "Bearer key")
            assert body["prompt"] == model.encoder.encode(MESSAGES)
            assert {"repetition_penalty": 1.1, "top_k": 40, "min_p": 0.05, "seed": 1}.items() <= body.items()
            assert 2 in body["stop_token_ids"]
        assert "the repetition penalty counts the whole chat" in host.warning(host.default)
        chat = asked(host, "Say hello.")
        first = reply(host, chat).stats
        chat.say("Go on.")
        assert reply(host, chat).stats.cached_tokens >= first.prompt_tokens


@needs_server
def test_log_probabilities_come_from_each_kind(servers: list[LlamaServerEngine], registry: Registry) -> None:
    # A greeting may begin with an emoji, of whose tokens llama-server tells the last one's only, or be short.
    story = [{"role": "user", "content": "Tell me a long story about a dog."}]
    sampling = GREEDY.model_copy(update={"repeat_penalty": 1, "max_tokens": 6})

    def told(host: Host) -> list[Any]:
        with host.use(host.default) as model:
            ids = model.encoder.encode(story)
            generation = model.engine.generate(Request(ids, sampling, logprobs=3))
            found = [token for chunk in generation for token in chunk.logprobs]
        assert len(found) == len(generation.stats.ids)
        return [(t.text, [t.logprob, *(other.logprob for other in t.top)]) for t in found]

    with like_vllm(servers[0]) as there, opened([there.url], registry=registry) as host:
        by_vllm = told(host)
    with at(servers[:1], registry) as host:
        by_llama_server = told(host)
    with at(servers[:1], NOTHING, "") as host:
        by_messages = told(host)
    body = {"messages": story, "temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    plain = servers[0]._request("POST", "/v1/chat/completions", json.dumps(body))["choices"][0]["logprobs"]
    tokens = [(t["logprob"], *(other["logprob"] for other in t["top_logprobs"])) for t in plain["content"]]
    assert len(by_llama_server) == len(tokens) == 6
    for got, wanted in (
        (by_vllm, [figures for _, figures in by_llama_server]),
        (by_messages, tokens),
    ):
        for (_, figures), figures_there in zip(got, wanted, strict=True):
            assert figures == pytest.approx(figures_there, abs=1e-3)
    assert [text for text, _ in by_vllm] == [text for text, _ in by_llama_server]


@needs_server
def test_a_grammar_holds_elsewhere_too(servers: list[LlamaServerEngine], registry: Registry) -> None:
    def held(host: Host) -> str:
        with host.use(host.default) as model:
            request = Request(model.encoder.encode(MESSAGES), GREEDY, grammar='root ::= "yes" | "no"')
            return "".join(chunk.text for chunk in model.engine.generate(request))

    with at(servers[:1], registry) as host:
        assert held(host) in ("yes", "no")
    with at(servers[:1], NOTHING, "") as host:
        assert held(host) in ("yes", "no")
    with (
        Stranger(v1_models=models("m")) as there,
        opened([there.url]) as host,
        pytest.raises(ChatError, match="can't be held to a JSON schema"),
    ):
        held(host)
    schema = '{"type": "boolean"}'
    plain = fields("OpenAI's API", Request([1], GREEDY, grammar='root ::= "yes"', schema=schema))
    assert plain["response_format"]["json_schema"]["schema"] == {"type": "boolean"}
    vllm = fields("vLLM", Request([1], GREEDY, grammar='root ::= "yes"'))
    assert vllm["structured_outputs"] == {"grammar": 'root ::= "yes"'}


@needs_server
def test_a_reply_ends_where_the_template_ends_it_though_the_file_there_names_no_such_token(
    embedded_model: Path, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}{{ '<|begin|>' + m.role + '\n' + m.content + '<|my_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|begin|>assistant\n' }}{% endif %}"
    )
    script = ["Hello", " world", "<|my_end|>", "User", " again"]
    scripted(embedded_model, tmp_path / "odd.gguf", script, template, [("<|my_end|>", CONTROL)])
    entry = Entry(sources=[Source(path=str(tmp_path / "odd.gguf"))], n_ctx=256)
    server = LlamaServerEngine(tmp_path / "odd.gguf", 256, 1)
    with at([server], Registry(Path("models.json").resolve(), {"odd": entry}), "odd") as host:
        chat = asked(host, "Hi.", GREEDY.model_copy(update={"repeat_penalty": 1}))
        reply(host, chat)
        assert (chat.messages[-1].content, chat.messages[-1].finish_reason) == ("Hello world", "stop")
    server.close()


@needs_server
def test_an_engine_that_is_back_is_used_again(servers: list[LlamaServerEngine], registry: Registry) -> None:
    port = free_port()
    with opened(
        [address(servers[0]), f"http://127.0.0.1:{port}"], [key(servers[0])], registry, "small"
    ) as host:
        second = endpoints(host)[1]
        assert "nothing listens" in host.registry.broken[second.url]
        second.fail(second.reason)  # look soon: not in ten seconds
        with like_vllm(servers[0], port):
            end = time.monotonic() + 60
            while not (second.up and second.kind == "vLLM"):
                assert time.monotonic() < end, second.reason
                time.sleep(0.05)
            time.sleep(1)
            for number in range(2):
                reply(host, asked(host, f"Say {number}."))
            assert second.taken == 1
