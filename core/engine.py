"""What every engine offers: token ids in; ids, text, progress and statistics out; cancel at any moment.

And why llama.cpp refused a model: the first line of its log that names the reason. Its later lines only pass
the failure on ("failed to load model", "exiting due to model loading error").
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from core.errors import ChatError

# Streamed text is handed on at this interval, not per token: waking a reader 160 times a second
# takes time from the two cores that decode.
CHUNK_INTERVAL_S = 0.06

# Both engines penalise the last tokens of the chat, prompt included (llama.cpp's default window).
PENALTY_WINDOW = 64
PENALTY_SCOPE = f"the last {PENALTY_WINDOW} tokens of the chat, prompt included"


LOOK_AGAIN_S = 0.1  # how often a load looks whether it is still wanted


class LoadCancelled(ChatError):
    """A load was given up before the model was ready: nobody waits for it any more."""


def wanted() -> bool:
    """The answer of a load that nobody cancels."""
    return False


class Sampling(BaseModel):
    """How the next token is drawn. Names and defaults are llama.cpp's own, except temperature."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(2048, ge=1, le=4096)
    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(40, ge=0, le=1000, description="0 is off")
    min_p: float = Field(0.05, ge=0, le=1)
    repeat_penalty: float = Field(1.1, ge=1, le=2, description="1.0 is off")
    seed: int | None = Field(None, ge=0, lt=2**32, description="none draws one")

    def seeded(self) -> Sampling:
        """Return a copy with a drawn seed where none was given."""
        return self if self.seed is not None else self.model_copy(update={"seed": secrets.randbelow(2**32)})


@dataclass(frozen=True)
class Request:
    """What an engine is asked for: a reply to the prompt `ids`.

    `grammar` is GBNF that llama.cpp's converter made of a checked schema (`chat/structured.py`), never what
    a client wrote: llama.cpp ends its process on some; `schema` is that schema as JSON, for engines that take
    no GBNF. `adapters` are strengths by name; without any the
    model's own apply, otherwise those that aren't named are off. `logprobs` asks for the log-probability of
    each token of the reply and of that many likeliest alternatives. `chat` names the chat, whose turns go to
    the engine that has its prompt in the cache, if there are several.
    """

    ids: Sequence[int]
    sampling: Sampling
    grammar: str = ""
    adapters: Mapping[str, float] = field(default_factory=dict)
    logprobs: int | None = None
    chat: str = ""
    schema: str = ""


@dataclass(frozen=True)
class TokenLogProb:
    """How likely the model thought a token, before any sampler or grammar: natural logarithm."""

    id: int
    text: bytes  # the token's part of the text, perhaps half a character; a control token has none
    # Of a character of several tokens, llama-server tells the last one's only, with the text of all.
    logprob: float | None
    top: tuple[TokenLogProb, ...] = ()  # the likeliest tokens at this place, the likeliest first


@dataclass(frozen=True)
class Chunk:
    """A piece of a reply, or (with empty text) a sign of progress on the prompt."""

    text: str = ""
    ids: tuple[int, ...] = ()
    prompt_done: int = 0  # prompt tokens evaluated so far, those from the cache included
    logprobs: tuple[TokenLogProb, ...] = ()  # of `ids`, where the request asked for them


@dataclass
class Stats:
    """What one reply cost. Times in seconds, speeds in tokens per second."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens found in the cache and not evaluated again
    generated_tokens: int = 0
    first_token_s: float = 0.0
    prompt_per_s: float = 0.0
    generated_per_s: float = 0.0
    finish_reason: Literal["stop", "length", "cancelled", ""] = ""
    seed: int = 0
    ids: list[int] = field(default_factory=list)  # the reply's ids, without the stop token
    fault: str = ""  # why the reply isn't what a JSON schema asks for, in a sentence


class Generation(Protocol):
    """One reply in the making."""

    stats: Stats  # complete when the iteration has ended

    def __iter__(self) -> Iterator[Chunk]: ...

    def cancel(self) -> None:
        """Stop from any thread, at any moment; the iteration then ends with finish_reason 'cancelled'."""
        ...


class Engine(Protocol):
    """One loaded model."""

    label: str  # "llama-server" or "in-process"
    n_ctx: int  # tokens of one chat: prompt and reply together
    shown: Mapping[str, int]  # control tokens that stay in a reply's text; the others leave none in it

    @property
    def slots(self) -> int:
        """Replies that it makes at once."""
        ...

    @property
    def n_cells(self) -> int:
        """Tokens, prompts and replies together, that these may have; at least n_ctx."""
        ...

    def settle(self, cancelled: Callable[[], bool]) -> None:
        """Measure what this machine can do, and start anew if that makes a difference. Raises ChatError.

        Called once, before the first reply, while no other model computes.
        """
        ...

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text`, no BOS added; `special` lets the surface of a control token become that token."""
        ...

    def generate(self, request: Request) -> Generation:
        """Start a reply. Raises ChatError (EngineDied when the engine is gone)."""
        ...

    def alive(self) -> bool: ...

    def close(self) -> None: ...


# What a caller says of a failure below it, in llama.cpp's src/, common/ and tools/server.
_SAYS_NOTHING = re.compile(
    r"failed to load model|exiting due to|cleaning up|failed to create context with model"
    r"|encountered an error|failed to read (?:header|tensor info)|unable to load model"
    r"|^task id = -?\d+, error",  # a request that was refused
    re.IGNORECASE,
)
_MEMORY = re.compile(
    r"(?:unable|failed|cannot) to (?:allocate|reserve)|cannot allocate|bad_alloc"
    r"|(?:out of|insufficient) memory",
    re.IGNORECASE,
)
_LEVEL = re.compile(r"^[\d.]+ ([A-Z]) (.*)")  # how llama-server begins a line
_CRASH = re.compile(r"GGML_ASSERT|GGML_ABORT|terminate called|what\(\): |bad_alloc")
_CALLER = re.compile(
    r"^(?:\w{2,5} {2,})?[A-Za-z]\w*(?:_|::)\w*: +(?=\S)"
)  # a function of C++, with an underscore
_WRAPPERS = re.compile(r"^(?:error loading model(?: \w+)?|failed to initialize the context): ")


def first_reason(errors: Iterable[str]) -> str:
    """Return the first of llama.cpp's error messages that says why, without who said it; else ""."""
    for line in errors:
        text = _CALLER.sub("", line.strip(), count=1)
        while (shorter := _CALLER.sub("", _WRAPPERS.sub("", text), count=1)) != text:
            text = shorter
        if text and not _SAYS_NOTHING.search(text):
            return f"the memory is too small: {text}" if _MEMORY.search(text) else text
    return ""


def server_errors(log: Iterable[str]) -> list[str]:
    """Return the error messages in the log of llama-server, and what the C++ runtime says of a crash."""
    found = []
    for line in log:
        level = _LEVEL.match(line)
        if (level and level[1] == "E") or _CRASH.search(line):
            found.append(level[2] if level else line)
    return found
