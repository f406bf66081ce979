"""What OpenAI's API is asked, read and checked: `/v1/chat/completions` and `/v1/completions`.

The fields are those of the official client (openai 3.57, types/chat/completion_create_params.py), and
llama-server's names for what OpenAI's API has none for. What would change a reply and isn't done here is
refused, unless its value asks for nothing; what only tells OpenAI about the caller is ignored; an unknown
field is refused with the nearest known one. `null` is the same as absent.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chat.conversation import SYSTEM_ROLES, Conversation, read_chat
from chat.settings import Schema, Strengths
from core.engine import Sampling
from core.entry import shown
from core.errors import ChatError

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 200
MAX_TOP = 20  # alternatives of a token, as in OpenAI's API

# By field: the values that ask for nothing, and what to do instead.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one reply a request; send several requests"),
    "best_of": ((1,), "one reply a request; send several requests"),
    "tools": (([],), "this server runs no tools; for JSON of a given form, use response_format"),
    "functions": (([],), "this server runs no functions; for JSON of a given form, use response_format"),
    "tool_choice": (("none", "auto"), "this server runs no tools"),
    "function_call": (("none", "auto"), "this server runs no functions"),
    "frequency_penalty": ((0,), "there is one penalty, repeat_penalty (1 is off)"),
    "presence_penalty": ((0,), "there is one penalty, repeat_penalty (1 is off)"),
    "logit_bias": (({},), "tokens can't be favoured; to bind a reply to a form, use response_format"),
    "modalities": ((["text"],), "replies are text"),
    "audio": ((), "replies are text"),
    "prediction": ((), "no text can be predicted for the model"),
    "web_search_options": ((), "nothing is looked up on the web"),
    "reasoning_effort": ((), "a model thinks as its template says; a system message may change that"),
    "verbosity": ((), "say in the messages how long the reply should be"),
    "moderation": ((), "nothing is moderated"),
    "store": ((False,), "nothing is stored here"),
    "suffix": (("",), "text can only be continued"),
    "echo": ((False,), "the reply comes without the prompt"),
}
_IGNORED = frozenset(
    (
        *("user", "metadata", "service_tier", "safety_identifier", "parallel_tool_calls"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    )
)


class BadRequest(ChatError):
    """A request that can't be meant, and the field that says so."""

    def __init__(self, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.param = param


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against who listens in; there is none


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str = ""
    description: str | None = None
    strict: bool | None = None  # the grammar always is
    schema_: Schema = Field(alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('type "json_schema" and json_schema go together')
        return self

    def schema_of(self) -> dict[str, Any] | None:
        """The schema that the reply has to follow; None for text."""
        if self.json_schema:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class _Request(BaseModel):
    """What both routes take. Sampling fields have no defaults here: the model's own entry has them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] = Field(default_factory=list)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, defaults: Sampling) -> Sampling:
        """`defaults` with what the request says. Raises BadRequest for a value out of range."""
        given = {key: getattr(self, key) for key in Sampling.model_fields}
        given = {key: value for key, value in given.items() if value is not None}
        try:
            return Sampling.model_validate(defaults.model_dump() | given)
        except ValidationError as error:
            raise bad_request(error) from None


class ChatRequest(_Request):
    """A request to `/v1/chat/completions`."""

    messages: list[Any] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    response_format: ResponseFormat | None = None
    adapters: Strengths = Field(default_factory=dict)  # strength by name; ours

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("max_tokens and max_completion_tokens differ")
            self.max_tokens = self.max_completion_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def top(self) -> int | None:
        """How many alternatives of each token are wanted; None for no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self, model: str, defaults: Sampling, system_prompt: str) -> Conversation:
        """The chat, its last message a question, or a reply to go on with. Raises BadRequest.

        `defaults` and `system_prompt` are the model's own, for what the request doesn't say.
        """
        for number, message in enumerate(self.messages):
            _check_message(number, message)
        try:
            read = read_chat({"messages": self.messages})
        except ValidationError as error:
            raise bad_request(error) from None
        except ChatError as error:
            raise BadRequest(str(error), "messages") from None
        if not read.messages or not any(read.messages[-1].reply()[:2]):
            raise BadRequest(
                "The last message is empty, or a system message: there is nothing to answer.", "messages"
            )
        read.model, read.sampling = model, self.sampling(defaults)
        if not any(message["role"] in SYSTEM_ROLES for message in self.messages):
            read.system_prompt = system_prompt
        return read


class CompletionRequest(_Request):
    """A request to `/v1/completions`: a prompt as text, or as token ids."""

    prompt: str | list[Any]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int):
            if len(self.prompt) > 1:
                raise ValueError("one prompt a request; send several requests")
            self.prompt = self.prompt[0]
        if isinstance(self.prompt, list):
            if not all(type(i) is int and i >= 0 for i in self.prompt):
                raise ValueError("a prompt is a text or a list of token ids")
        elif not isinstance(self.prompt, str):
            raise ValueError("a prompt is a text or a list of token ids")
        if not self.prompt:
            raise ValueError("the prompt is empty")
        return self

    @property
    def top(self) -> int | None:
        return self.logprobs


R = TypeVar("R", bound=_Request)


def read_request(kind: type[R], body: Any) -> R:
    """Read the JSON value of a request. Raises BadRequest."""
    if not isinstance(body, Mapping):
        raise BadRequest(f"The body is {shown(body)}; send a JSON object.")
    given = {str(key): value for key, value in body.items() if value is not None and key not in _IGNORED}
    for key, (neutral, instead) in _REFUSED.items():
        if key in given and key not in kind.model_fields:
            value = given.pop(key)
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
                raise BadRequest(f"{key} is {shown(value)}, which isn't supported: {instead}.", key)
    for key in given:
        if key not in kind.model_fields:
            close = difflib.get_close_matches(key, [*kind.model_fields, *_REFUSED, *_IGNORED], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise BadRequest(f"Unknown field {shown(key)}{hint}", key[:100])
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise bad_request(error) from None


def bad_request(error: ValidationError) -> BadRequest:
    """The first of the mistakes, with its value, as a sentence."""
    wrong = error.errors()[0]
    where = ".".join(str(part) for part in wrong["loc"] if part not in ("schema_",))
    said = str(wrong["ctx"]["error"]) if wrong["type"] == "value_error" else wrong["msg"]
    if wrong["type"] == "missing":
        return BadRequest(f"{where} is missing.", where)
    said = f"{said[:1].lower()}{said[1:]}"
    return BadRequest(f"{where} is {shown(wrong['input'])}: {said}." if where else f"{said}.", where or None)


def _check_message(number: int, message: Any) -> None:
    """Refuse what a message can carry in OpenAI's API and can't be told to a model here."""
    where = f"messages.{number}"
    if not isinstance(message, Mapping):
        raise BadRequest(f"{where} is {shown(message)}; a message has a role and content.", where)
    role = message.get("role")
    if role in ("tool", "function") or any(message.get(key) for key in ("tool_calls", "function_call")):
        raise BadRequest(f"{where} is about a tool; this server runs none.", where)
    for key in ("audio", "name"):
        if message.get(key):
            raise BadRequest(f"{where} has {key!r}, which isn't supported.", f"{where}.{key}")
