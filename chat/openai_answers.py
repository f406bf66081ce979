"""From the body of a request to the steps of its reply, in a thread of its own: nothing here is async."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from chat.conversation import Conversation
from chat.openai_reply import ChatShape, CompletionShape, Shape, Step, Written
from chat.openai_request import BadRequest, ChatRequest, CompletionRequest, read_request
from chat.reply import Sessions
from core.entry import Entry, shown
from core.errors import NoSuchModel
from core.reasoning import Reply
from core.registry import Registry

# What a request is answered, from its body, the name of its user, and the key that stops it: what the reply
# looks like first, then its steps.
Steps = Callable[[Sessions, bytes, str, str], Iterator[Shape | Step]]

_NOTHING = Reply("", "", False)


def chat_steps(sessions: Sessions, body: bytes, user: str, key: str) -> Iterator[Shape | Step]:
    """Answer a request to `/v1/chat/completions`."""
    asked = read_request(ChatRequest, read_json(body))
    name, entry = find_model(sessions.host.registry, asked.model)
    conversation = asked.conversation(name, entry.sampling, entry.system_prompt or "")
    conversation.adapters = asked.adapters
    if asked.response_format and (schema := asked.response_format.schema_of()) is not None:
        conversation.json_schema = schema
    yield ChatShape(name, asked.stream, asked.stream_options.include_usage, asked.logprobs)
    extend = conversation.messages[-1].role == "assistant"
    written = Written(_last(conversation))
    for state in sessions.reply(key, conversation, extend, user, asked.stops, asked.top):
        yield written.step(_last(conversation), state)


def completion_steps(sessions: Sessions, body: bytes, user: str, key: str) -> Iterator[Shape | Step]:
    """Answer a request to `/v1/completions`."""
    asked = read_request(CompletionRequest, read_json(body))
    name, entry = find_model(sessions.host.registry, asked.model)
    sampling = asked.sampling(entry.sampling)
    yield CompletionShape(name, asked.stream, asked.stream_options.include_usage, asked.top is not None)
    written = Written(_NOTHING)
    for state in sessions.complete(key, name, asked.prompt, sampling, user, asked.stops, asked.top):
        yield written.step(Reply("", state.text, False), state)


def _last(conversation: Conversation) -> Reply:
    last = conversation.messages[-1]
    return last.reply() if last.role == "assistant" else _NOTHING


def find_model(registry: Registry, wanted: str) -> tuple[str, Entry]:
    """The model called `wanted`, or the default one, which is on this disk. Raises NoSuchModel."""
    name = wanted or next(iter(registry.entries), "")
    entry = registry.entries.get(name)
    if entry is None:
        raise NoSuchModel(f"No model is called {shown(name)}; GET /v1/models has those that there are.")
    if registry.locate(entry) is None:
        raise NoSuchModel(f"{name} is not on this disk. Choose it in the page's model menu to download it.")
    return name, entry


def read_json(body: bytes) -> Any:
    """Read a body. Raises BadRequest: what Python takes beyond JSON is refused too."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except RecursionError:
        raise BadRequest("The body isn't JSON that can be read: it is nested too deeply.") from None
    except ValueError as error:  # also a number of too many digits, and bytes that aren't UTF-8
        raise BadRequest(f"The body isn't JSON: {str(error)[:200]}") from None
