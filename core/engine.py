"""What every engine offers: token ids in; ids, text, progress and statistics out; cancel at any moment."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
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
class Chunk:
    """A piece of a reply, or (with empty text) a sign of progress on the prompt."""

    text: str = ""
    ids: tuple[int, ...] = ()
    prompt_done: int = 0  # prompt tokens evaluated so far, those from the cache included


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

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text`, no BOS added; `special` lets the surface of a control token become that token."""
        ...

    def generate(self, ids: list[int], sampling: Sampling) -> Generation:
        """Start a reply to the prompt `ids`. Raises ChatError (EngineDied when the engine is gone)."""
        ...

    def alive(self) -> bool: ...

    def close(self) -> None: ...
