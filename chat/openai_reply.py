"""Replies in the shape of OpenAI's API: whole, or as the chunks of a stream.

Shapes as in the official client (openai 3.57, types/chat/chat_completion.py, chat_completion_chunk.py and
types/completion.py); a thought is `reasoning_content`, as llama-server and DeepSeek name it.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chat.context import TurnState
from core.engine import TokenLogProb
from core.reasoning import Reply

UNLIKELY = -9999.0  # OpenAI's value for a log-probability that isn't told


@dataclass(frozen=True)
class Step:
    """What a reply has more than at the step before, and where its turn stands."""

    state: TurnState
    thought: str = ""
    text: str = ""
    logprobs: Sequence[TokenLogProb] = ()


class Written:
    """Tells what is new in a reply that grows. Blanks at its end wait: they may not stay part of it."""

    def __init__(self, begun: Reply) -> None:
        self._thought, self._text, self._logprobs = begun.thought, begun.answer, 0

    def step(self, reply: Reply, state: TurnState) -> Step:
        thought = reply.thought if state.done else reply.thought.rstrip()
        text = reply.answer if state.done else reply.answer.rstrip()
        new = _beyond(self._thought, thought), _beyond(self._text, text)
        self._thought, self._text = self._thought + new[0], self._text + new[1]
        logprobs = state.logprobs[self._logprobs :]
        self._logprobs += len(logprobs)
        return Step(state, *new, logprobs)


def _beyond(sent: str, whole: str) -> str:
    return whole[len(sent) :] if whole.startswith(sent) else ""


@dataclass
class Shape(ABC):
    """One reply to one request: what all its chunks have in common, and what the whole has collected."""

    model: str
    stream: bool
    include_usage: bool
    logprobs: bool
    prefix = ""
    whole_object = ""
    chunk_object = ""
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    thought: str = ""
    text: str = ""
    tokens: list[TokenLogProb] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"

    def take(self, step: Step) -> None:
        """Collect a step for the whole."""
        self.thought += step.thought
        self.text += step.text
        self.tokens += step.logprobs

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before the first step's."""
        return []

    @abstractmethod
    def chunk(self, step: Step) -> dict[str, Any] | None:
        """The step as a chunk; None if it says nothing."""

    def closing(self, state: TurnState) -> list[dict[str, Any]]:
        """The chunks that say how the reply ended and what it cost."""
        last = [self._chunk(self._last(_reason(state))) | _warning(state)]
        if self.include_usage:
            last.append(self._chunk(None) | {"usage": usage(state)})
        return last

    def whole(self, state: TurnState) -> dict[str, Any]:
        """All of it, for who doesn't want a stream."""
        choice = self._whole() | {"index": 0, "finish_reason": _reason(state)}
        return self._frame(self.whole_object, [choice]) | {"usage": usage(state)} | _warning(state)

    @abstractmethod
    def _last(self, reason: str) -> dict[str, Any]:
        """The choice that ends a stream."""

    @abstractmethod
    def _whole(self) -> dict[str, Any]:
        """The choice that has all of the reply."""

    def _chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        choices = [{"index": 0, "finish_reason": None, "logprobs": None} | choice] if choice else []
        asked = {"usage": None} if self.include_usage else {}
        return self._frame(self.chunk_object, choices) | asked

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class ChatShape(Shape):
    """A reply of `/v1/chat/completions`."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk({"delta": {"role": "assistant", "content": ""}})]

    def chunk(self, step: Step) -> dict[str, Any] | None:
        delta = {"reasoning_content": step.thought} if step.thought else {}
        delta |= {"content": step.text} if step.text else {}
        if not delta and not step.logprobs:
            return None
        return self._chunk({"delta": delta, "logprobs": self._logprobs(step.logprobs)})

    def _last(self, reason: str) -> dict[str, Any]:
        return {"delta": {}, "finish_reason": reason}

    def _whole(self) -> dict[str, Any]:
        thought = {"reasoning_content": self.thought} if self.thought else {}
        message = {"role": "assistant", "content": self.text, "refusal": None} | thought
        return {"message": message, "logprobs": self._logprobs(self.tokens)}

    def _logprobs(self, tokens: Sequence[TokenLogProb]) -> dict[str, Any] | None:
        told = [_chat_token(token) | {"top_logprobs": list(map(_chat_token, token.top))} for token in tokens]
        return {"content": told, "refusal": None} if self.logprobs else None


class CompletionShape(Shape):
    """A reply of `/v1/completions`."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"
    _offset = 0

    def chunk(self, step: Step) -> dict[str, Any] | None:
        if not step.text and not step.logprobs:
            return None
        return self._chunk({"text": step.text, "logprobs": self._logprobs(step.logprobs)})

    def _last(self, reason: str) -> dict[str, Any]:
        return {"text": "", "finish_reason": reason}

    def _whole(self) -> dict[str, Any]:
        return {"text": self.text, "logprobs": self._logprobs(self.tokens)}

    def _logprobs(self, tokens: Sequence[TokenLogProb]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(_text(token))
        return {
            "tokens": list(map(_text, tokens)),
            "token_logprobs": [_logprob(token) for token in tokens],
            "top_logprobs": [{_text(one): _logprob(one) for one in token.top} for token in tokens],
            "text_offset": offsets,
        }


def usage(state: TurnState) -> dict[str, Any]:
    """What the reply cost, in tokens."""
    generated = max(state.generated_tokens, state.stats.generated_tokens)
    return {
        "prompt_tokens": state.prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": state.prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": state.stats.cached_tokens},
    }


def _warning(state: TurnState) -> dict[str, str]:
    """Ours: why a reply isn't what its JSON schema asks for."""
    return {"warning": state.stats.fault} if state.stats.fault else {}


def _reason(state: TurnState) -> str:
    return "length" if state.stats.finish_reason == "length" else "stop"


def _chat_token(token: TokenLogProb) -> dict[str, Any]:
    return {"token": _text(token), "bytes": list(token.text), "logprob": _logprob(token)}


def _text(token: TokenLogProb) -> str:
    return token.text.decode("utf-8", "replace")


def _logprob(token: TokenLogProb) -> float:
    """JSON has no minus infinity, which a token that a sampler has ruled out may have."""
    return UNLIKELY if token.logprob is None else max(token.logprob, UNLIKELY)
