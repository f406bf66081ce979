"""What OpenAI's API is asked: which fields are taken, ignored and refused, and with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params

from chat.openai_answers import read_json
from chat.openai_request import (
    _IGNORED,
    _REFUSED,
    BadRequest,
    ChatRequest,
    CompletionRequest,
    read_request,
)
from core.engine import Sampling

HI = {"messages": [{"role": "user", "content": "Hi"}]}


def refused(body: Any, kind: type[Any] = ChatRequest) -> BadRequest:
    with pytest.raises(BadRequest) as error:
        read_request(kind, body)
    return error.value


def test_every_field_of_the_official_client_is_known() -> None:
    """A field that OpenAI adds is a decision to take, not an unknown one."""
    known = {*_IGNORED, *_REFUSED}
    for kind, params in (
        (ChatRequest, chat_params.CompletionCreateParamsNonStreaming),
        (CompletionRequest, text_params.CompletionCreateParamsNonStreaming),
    ):
        assert params.__annotations__ or params.__mro__
        fields = {key for base in params.__mro__ for key in getattr(base, "__annotations__", {})}
        fields |= set(getattr(params, "__required_keys__", ())) | set(
            getattr(params, "__optional_keys__", ())
        )
        assert len(fields) > 15
        assert not fields - known - set(kind.model_fields)


@pytest.mark.parametrize(
    "field",
    [
        *({"n": 1}, {"frequency_penalty": 0.0}, {"presence_penalty": 0}, {"tools": []}, {"logit_bias": {}}),
        *(
            {"user": "me"},
            {"metadata": {"a": "b"}},
            {"service_tier": "auto"},
            {"tools": None},
            {"seed": None},
        ),
        *({"modalities": ["text"]}, {"store": False}, {"response_format": {"type": "text"}}),
        *({"temperature": 1}, {"stream_options": {"include_usage": True, "include_obfuscation": False}}),
    ],
    ids=json.dumps,
)
def test_what_asks_for_nothing_special_is_taken(field: dict[str, Any]) -> None:
    read_request(ChatRequest, HI | field)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"n": 2}, "n is 2, which isn't supported: one reply a request"),
        ({"n": True}, "n is true"),
        ({"tools": [{"type": "function"}]}, "runs no tools"),
        ({"tool_choice": "required"}, "runs no tools"),
        ({"functions": [{}]}, "runs no functions"),
        ({"frequency_penalty": 0.5}, "repeat_penalty"),
        ({"logit_bias": {"1": 5}}, "tokens can't be favoured"),
        ({"audio": {"voice": "x"}}, "replies are text"),
        ({"modalities": ["text", "audio"]}, "replies are text"),
        ({"temprature": 0.5}, "Unknown field \"temprature\"; did you mean 'temperature'?"),
        ({"__class__": 1}, "Unknown field"),
        ({"temperature": "hot"}, 'temperature is "hot"'),
        ({"temperature": True}, "temperature is true"),
        ({"max_tokens": 5.5}, "max_tokens is 5.5"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens and max_completion_tokens differ"),
        ({"top_logprobs": 5}, "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 201}, "stop"),
        ({"stream": "yes"}, 'stream is "yes"'),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "go together"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "schema is missing"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"model": 5}, "model is 5"),
        ({"top_k": 10**30}, "top_k"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_is_not_done_here_is_refused_with_its_name(field: dict[str, Any], says: str) -> None:
    error = refused(HI | field) if "top_k" not in field else _out_of_range(field)
    assert says in str(error)
    assert len(str(error)) < 400
    assert error.param is None or len(error.param) <= 100


def _out_of_range(field: dict[str, Any]) -> BadRequest:
    with pytest.raises(BadRequest) as error:
        read_request(ChatRequest, HI | field).sampling(Sampling())
    return error.value


@pytest.mark.parametrize("body", [None, [], "x", 5, {}])
def test_a_body_that_is_no_request_is_told_so(body: Any) -> None:
    refused(body)


@pytest.mark.parametrize(
    "message",
    [
        *("Hi", {}, {"role": "user"}, {"role": "wizard", "content": "x"}, {"role": "user", "content": ""}),
        *({"role": "user", "content": 5}, {"role": "user", "content": "x", "name": "Ann"}),
        {"role": "tool", "content": "5", "tool_call_id": "1"},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "system", "content": "alone"},
        {"role": "user", "content": "x", "finish_reason": "whatever"},
    ],
    ids=json.dumps,
)
def test_a_message_that_a_model_can_not_be_told_is_refused(message: Any) -> None:
    with pytest.raises(BadRequest) as error:
        read_request(ChatRequest, {"messages": [message]}).conversation("m", Sampling(), "")
    assert str(error.value.param).startswith("messages")


def test_a_chat_as_clients_send_it() -> None:
    """Parts of text, `developer`, what the official client dumps of a reply, and the model's own defaults."""
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}]},
        {"role": "assistant", "content": "Ho", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "So?"},
    ]
    asked = read_request(ChatRequest, {"messages": messages, "max_completion_tokens": 7, "temperature": 0})
    defaults = Sampling(top_k=3, max_tokens=99, temperature=1.5)
    chat = asked.conversation("m", defaults, "the entry's own")
    assert chat.system_prompt == "Be brief."
    assert [m.content for m in chat.messages] == ["Hi there", "Ho", "So?"]
    assert chat.sampling == Sampling(top_k=3, max_tokens=7, temperature=0)
    plain = read_request(ChatRequest, HI).conversation("m", defaults, "the entry's own")
    assert (plain.system_prompt, plain.sampling) == ("the entry's own", defaults)


@pytest.mark.parametrize("prompt", ["Once", [1, 2], ["Once"], [[1, 2]]])
def test_a_prompt_is_a_text_or_ids(prompt: Any) -> None:
    asked = read_request(CompletionRequest, {"prompt": prompt, "echo": False, "best_of": 1, "suffix": None})
    assert asked.prompt in ("Once", [1, 2])


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], ["a", "b"], [1, "a"], [1.5], [-1], [True], [[1], [2]], {}, 5]
)
def test_other_prompts_are_refused(prompt: Any) -> None:
    refused({"prompt": prompt}, CompletionRequest)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff\xfe", b'{"a": NaN}', b'{"a": Infinity}', b"[" * 100_000, b"\x00"),
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_is_told_so(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_json(body)
