"""OpenAI's API as its official client uses it: on the real app, with the real small model."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from chat.llama_server import find_binary
from tests.integration.openai_app import KEY, NAME, QUESTION, end, raw, serve
from tests.integration.running_app import App, wait_for

GREEDY: dict[str, Any] = {"temperature": 0, "seed": 7, "extra_body": {"repeat_penalty": 1.0}}


@pytest.fixture(scope="module", params=["llama-server", "in-process"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    if request.param == "llama-server" and not find_binary():
        pytest.skip("no llama-server here; run: make test")
    app = serve(tmp_path_factory.mktemp("api"), request.param)
    yield app
    end(app)


@pytest.fixture
def client(app: App) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{app.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def ask(client: OpenAI, **more: Any) -> ChatCompletion:
    given: dict[str, Any] = {"model": "", "messages": QUESTION, "max_tokens": 12, **GREEDY} | more
    reply: ChatCompletion = client.chat.completions.create(**given)
    return reply


def test_a_reply_and_what_it_cost(client: OpenAI) -> None:
    first, again = ask(client, max_tokens=24), ask(client, max_completion_tokens=24, max_tokens=None)
    assert (first.object, first.model) == ("chat.completion", NAME)
    assert first.choices[0].finish_reason == "length"
    assert first.choices[0].message.role == "assistant"
    assert len(first.choices[0].message.content or "") > 20
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.usage
    assert again.usage
    assert first.usage.completion_tokens == 24
    assert first.usage.total_tokens == first.usage.prompt_tokens + 24
    assert again.usage.prompt_tokens_details
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1


def test_a_stream_says_the_same_piece_by_piece(client: OpenAI) -> None:
    whole = ask(client, max_tokens=40)
    stream = client.chat.completions.create(
        model=NAME,
        messages=QUESTION,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 40
    assert not any(chunk.usage for chunk in chunks[:-1])


def test_a_reply_at_the_end_of_the_messages_is_gone_on_with(client: OpenAI) -> None:
    whole = ask(client, max_tokens=24).choices[0].message.content or ""
    half = ask(client, max_tokens=12).choices[0].message.content or ""
    rest = ask(client, messages=[*QUESTION, {"role": "assistant", "content": half}], max_tokens=12)
    assert half + (rest.choices[0].message.content or "") == whole


def test_the_entry_of_a_model_says_what_a_request_does_not(client: OpenAI) -> None:
    """Its system message is told to the model, unless the request brings one."""
    given = ask(client, model="Tiny", messages=[{"role": "system", "content": "Be brief."}, *QUESTION])
    own = ask(client, model="Tiny")
    other = ask(client, model="Tiny", messages=[{"role": "system", "content": ""}, *QUESTION])
    assert own.usage
    assert given.usage
    assert other.usage
    assert own.usage.prompt_tokens == given.usage.prompt_tokens != other.usage.prompt_tokens


def test_a_stop_text_ends_a_reply_and_is_no_part_of_it(client: OpenAI) -> None:
    whole = ask(client, max_tokens=40).choices[0].message.content or ""
    words = whole.split(" ")
    for stop in (words[5], [words[8], words[5]], "a text that never comes"):
        reply = ask(client, max_tokens=40, stop=stop)
        found = [whole.find(one) for one in ([stop] if isinstance(stop, str) else stop)]
        first = min((at for at in found if at >= 0), default=-1)
        assert reply.choices[0].message.content == (whole[:first].rstrip() if first >= 0 else whole)
        assert reply.choices[0].finish_reason == ("stop" if first >= 0 else "length")
        pieces = client.chat.completions.create(
            model="", messages=QUESTION, max_tokens=40, stop=stop, stream=True, **GREEDY
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
        assert text.rstrip() == reply.choices[0].message.content


def test_log_probabilities_are_those_of_the_text(client: OpenAI) -> None:
    whole = ask(client, logprobs=True, top_logprobs=3)
    told = whole.choices[0].logprobs
    assert told
    assert told.content
    assert "".join(token.token for token in told.content).strip() == whole.choices[0].message.content
    for token in told.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-3)  # it is greedy
        assert bytes(token.bytes or []).decode() == token.token
    pieces = client.chat.completions.create(
        model="", messages=QUESTION, max_tokens=12, stream=True, logprobs=True, **GREEDY
    )
    parts = [chunk.choices[0].logprobs for chunk in pieces]
    streamed = [token for part in parts if part for token in part.content or []]
    assert [token.token for token in streamed] == [token.token for token in told.content]


def test_a_reply_of_a_given_form(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "teeth": {"type": "integer"}},
        "required": ["name", "teeth"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "dragon", "strict": True, "schema": schema}}
    reply = ask(client, response_format=form, max_tokens=100)
    assert set(json.loads(reply.choices[0].message.content or "")) == {"name", "teeth"}
    cut = ask(client, response_format=form, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert "cut by its length" in (cut.model_extra or {})["warning"]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, response_format=form | {"json_schema": {"name": "x", "schema": {"type": "wizard"}}})
    assert refused.value.param == "response_format"


def test_an_adapter_that_is_not_there(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no adapter called 'pirate'; it has none") as refused:
        ask(client, extra_body={"adapters": {"pirate": 1.0}})
    assert refused.value.param == "adapters"


def test_a_text_or_ids_are_gone_on_with(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": NAME, "max_tokens": 8, **GREEDY}
    prompt = "Once upon a time, there was a"
    reply = client.completions.create(prompt=prompt, logprobs=2, **options)
    text = reply.choices[0].text
    assert (reply.object, reply.choices[0].finish_reason) == ("text_completion", "length")
    assert text.startswith(" ")
    told = reply.choices[0].logprobs
    assert told
    assert "".join(told.tokens or []) == text
    assert told.text_offset == [len("".join((told.tokens or [])[:n])) for n in range(8)]
    assert all(len(top) == 2 for top in told.top_logprobs or [])
    pieces = client.completions.create(prompt=[prompt], stream=True, **options)
    assert "".join(piece.choices[0].text for piece in pieces) == text
    assert reply.usage
    ids = client.completions.create(prompt=[1, 2, 3], **options)
    assert ids.usage
    assert ids.usage.prompt_tokens == 3
    marked = client.completions.create(prompt="<|im_start|>", **options)
    assert marked.usage
    assert marked.usage.prompt_tokens > 1  # text, and no control token
    long = "context_length_exceeded"
    for bad, code in (([10**6], None), ("dragon " * 1000, long), ("a" * 10**6, long), ([5] * 256, long)):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(prompt=bad, **options | {"model": "Tiny"})
        assert refused.value.code == code


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME, "Tiny"]  # those on this disk
    assert client.models.retrieve(NAME).owned_by == "tune2chat"
    for name in ("nothing", "Elsewhere", "../../etc/passwd", "a b/c", "%2e%2e"):
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve(name)
        assert missing.value.code == "model_not_found"


def test_what_cannot_be_answered_is_told_as_openai_tells_it(client: OpenAI) -> None:
    cases: list[tuple[type[openai.APIStatusError], str | None, str | None, dict[str, Any]]] = [
        (openai.NotFoundError, "model_not_found", "model", {"model": "gpt-4"}),
        (openai.NotFoundError, "model_not_found", "model", {"model": "Elsewhere"}),
        (openai.BadRequestError, None, "n", {"n": 2}),
        (openai.BadRequestError, None, "temperature", {"temperature": 2.5}),
        (openai.BadRequestError, None, "seed", {"seed": -1}),
        (openai.BadRequestError, None, "max_tokens", {"max_tokens": 10**9}),
        (openai.BadRequestError, None, "frequency_penalty", {"frequency_penalty": 1}),
        (openai.BadRequestError, None, "wizard", {"extra_body": {"wizard": 1}}),
        (openai.BadRequestError, None, "messages", {"messages": [{"role": "system", "content": "x"}]}),
        (openai.BadRequestError, "context_length_exceeded", None, LONG),
        (openai.BadRequestError, "context_length_exceeded", None, LONG | {"stream": True}),
    ]
    for kind, code, param, request in cases:
        with pytest.raises(kind) as refused:
            ask(client, **request)
        assert (refused.value.code, refused.value.param) == (code, param), request
        assert refused.value.type == "invalid_request_error"


LONG: dict[str, Any] = {"model": "Tiny", "messages": [{"role": "user", "content": "dragon " * 1000}]}


def test_a_reply_ends_with_its_client(app: App, client: OpenAI) -> None:
    """While it streams, while it doesn't, and while its client only hangs up its side."""
    for stream in (True, False):
        body = json.dumps({"messages": QUESTION, "max_tokens": 4000, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", int(app.url.rsplit(":", 1)[1]))) as line:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            line.sendall(head.encode() + body)
            if stream:
                assert line.recv(10_000).startswith(b"HTTP/1.1 200")
            else:
                time.sleep(1)
        began = time.monotonic()
        wait_for(lambda: "tune2chat_requests_running 0\n" in raw(app, "GET", "/metrics")[1])
        assert time.monotonic() - began < 5


def test_many_at_once_get_their_own(client: OpenAI) -> None:
    numbers: dict[int, str] = {}

    def count(start: int) -> None:
        messages = [{"role": "user", "content": f"Repeat this: canary-{start}"}]
        numbers[start] = ask(client, messages=messages, max_tokens=16).choices[0].message.content or ""

    threads = [threading.Thread(target=count, args=(start,)) for start in range(101, 109)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers) == 8
    for start, text in numbers.items():
        assert not any(f"canary-{other}" in text for other in numbers if other != start)
