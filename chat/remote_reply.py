"""One reply of an engine elsewhere, read from its event stream: llama-server's own, or OpenAI's.

The stream is another program's: lines and their number are bounded, and what isn't an event of the form that
was asked for ends the reply with a sentence.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from chat.llama_reply import LlamaServerGeneration
from chat.remote import Endpoint, Kind, Unavailable, error_text
from core.engine import CHUNK_INTERVAL_S, Chunk, Request, TokenLogProb
from core.errors import ChatError, EngineDied
from core.prompt import Messages

SILENCE_S = 300.0  # a long prompt on a busy engine; vLLM says nothing until its first token
LONGEST_LINE, LONGEST_STREAM = 2**20, 64 * 2**20  # bytes
LAST_WORDS_S = 2.0  # for the usage that follows the end of a reply
BYTES_PER_ID = 3  # of a chat that travels as messages: about what a token of a prompt holds
MOST_TOP = 20  # alternatives that OpenAI's API tells of a token
ONLY_MESSAGES = "This model's engine takes whole messages only."
DONE: dict[str, Any] = {"done": True}  # stands for the line that ends a stream of OpenAI's
NOT_A_REPLY = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


class ModelThere(Protocol):
    """The model of an engine elsewhere, as a reply needs it."""

    n_ctx: int
    shown: Mapping[str, int]
    stop_ids: list[int]  # all at which a reply ends
    ends: frozenset[int]  # those of them that its file doesn't name

    def tokenize(self, text: str, special: bool) -> list[int]: ...


class _Server:
    """An endpoint as chat/llama_reply.py knows llama-server."""

    port = 0

    def __init__(self, model: ModelThere, endpoint: Endpoint) -> None:
        self.n_ctx, self.shown, self.tokenize = model.n_ctx, model.shown, model.tokenize
        self.headers = endpoint.headers

    def died(self) -> EngineDied:
        return Unavailable("it hung up")


class RemoteGeneration(LlamaServerGeneration):
    """A reply of llama-server, by token ids."""

    def __init__(self, endpoint: Endpoint, model: ModelThere, request: Request) -> None:
        super().__init__(_Server(model, endpoint), request, [])
        self._endpoint = endpoint
        self._connection = endpoint.connect()
        self._path = "/completion"
        self._unnamed = model.ends

    def _events(self) -> Iterator[tuple[dict[str, Any], bool]]:
        try:
            with self._endpoint.speaking():
                self._connection.connect()
                self._socket = self._connection.sock
                if self._cancelled:
                    return
                self._socket.settimeout(SILENCE_S)
                path = self._endpoint.path(self._path)
                self._connection.request("POST", path, self._request, self._endpoint.headers)
                with self._connection.getresponse() as response:
                    if response.status != 200:
                        raise self._endpoint.refusal(response, response.read(LONGEST_LINE))
                    for event, waited in _events(response):
                        if self._unnamed and not self._unnamed.isdisjoint(event.get("tokens") or ()):
                            yield self._stop(), waited  # llama-server would go on
                            return
                        yield event, waited
        except Unavailable:
            if not self._cancelled:
                raise

    def _stop(self) -> dict[str, Any]:
        timings = {"cache_n": self.stats.cached_tokens, "prompt_per_second": 0, "predicted_per_second": 0}
        return {"stop": True, "stop_type": "eos", "tokens_predicted": -1, "timings": timings}


class OpenAIGeneration(RemoteGeneration):
    """A reply of an engine with OpenAI's API: vLLM by token ids, any by messages."""

    def __init__(
        self, endpoint: Endpoint, model: ModelThere, request: Request, name: str, by_ids: bool
    ) -> None:
        super().__init__(endpoint, model, request)
        self._by_ids, self._ends, self._thinking = by_ids, set(model.stop_ids), False
        self._path = "/v1/completions" if by_ids else "/v1/chat/completions"
        ids = list(request.ids)
        body = {"model": name, "stream": True, "stream_options": {"include_usage": True}}
        body |= {"max_tokens": max(1, min(request.sampling.max_tokens, model.n_ctx - len(ids)))}
        body |= fields(endpoint.kind, request)
        if by_ids:
            body |= {"prompt": ids, "return_token_ids": True, "add_special_tokens": False}
            body |= {"stop_token_ids": model.stop_ids, "skip_special_tokens": not model.shown}
        else:
            body |= {"messages": unpacked(ids)}
        if self._top is not None:
            few = min(self._top, MOST_TOP)
            body |= {"logprobs": self._top} if by_ids else {"logprobs": True, "top_logprobs": few}
        self._request = json.dumps(body)

    def _chunks(self, started: float) -> Iterator[Chunk]:
        text, given, last = "", 0, 0.0
        for event, waited in self._until_stopped():
            text += self._read(event)
            ids, now = self.stats.ids, time.perf_counter()
            self.stats.first_token_s = self.stats.first_token_s or (now - started if ids else 0.0)
            if text and (waited or not last) and now - last >= CHUNK_INTERVAL_S:
                yield self._chunk(text, given, len(ids))
                text, given, last = "", len(ids), now
                time.sleep(CHUNK_INTERVAL_S)
        seconds = time.perf_counter() - started - self.stats.first_token_s
        self.stats.generated_per_s = len(self.stats.ids) / seconds if seconds > 0 else 0.0
        yield self._chunk(text, given, len(self.stats.ids))

    def _until_stopped(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield the events; after the end of the reply, what else is said has little time."""
        try:
            for event in super()._until_stopped():
                yield event
                if self.stats.finish_reason and self._socket:
                    self._socket.settimeout(LAST_WORDS_S)
        except Unavailable:
            if not self.stats.finish_reason:
                raise

    def _read(self, event: dict[str, Any]) -> str:
        """Take an event in, ids (-1 for what isn't known) and figures; return its text."""
        if usage := event.get("usage"):
            self.stats.prompt_tokens = int(usage.get("prompt_tokens") or self.stats.prompt_tokens)
            details = usage.get("prompt_tokens_details") or {}
            self.stats.cached_tokens = int(details.get("cached_tokens") or 0)
        if event is DONE and self.stats.ids:  # not every engine says how a reply ended
            self.stats.finish_reason = self.stats.finish_reason or "stop"
        if self.stats.finish_reason or not event.get("choices"):
            return ""
        choice = event["choices"][0]
        text, ids, ended = (
            self._text(choice),
            list(choice.get("token_ids") or ()),
            choice.get("finish_reason"),
        )
        told = _logprobs(choice["logprobs"], ids) if self._top is not None and choice.get("logprobs") else []
        if not self._by_ids or (text and not ids):
            ids = [-1] * (len(told) or bool(text))
        if ended == "stop" and ids and ids[-1] in self._ends:
            ids.pop()
        self.stats.ids += ids
        self._logprobs += told[: len(ids)]
        if ended:
            self.stats.finish_reason = "length" if ended == "length" else "stop"
        return text

    def _text(self, choice: dict[str, Any]) -> str:
        """The text of a choice; a thought that comes apart is put between marks again."""
        if self._by_ids:
            return choice.get("text") or ""
        delta = choice.get("delta") or choice.get("message") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        answer = delta.get("content") or ""
        if thought and not self._thinking:
            thought = f"<think>\n{thought}"
        elif answer and self._thinking:
            answer = f"\n</think>\n\n{answer}"
        self._thinking = (self._thinking or bool(thought)) and not answer
        return str(thought + answer)


def fields(kind: Kind, request: Request) -> dict[str, Any]:
    """A request in the names of the engine's own API. Raises ChatError for what it hasn't got."""
    sampling = request.sampling
    known: dict[str, Any] = {key: getattr(sampling, key) for key in ("temperature", "top_p", "seed")}
    if kind == "vLLM":  # 0 was no top-k in its older versions
        known |= {"top_k": sampling.top_k or -1, "min_p": sampling.min_p}
        known |= {"repetition_penalty": sampling.repeat_penalty}
        known |= {"structured_outputs": {"grammar": request.grammar}} if request.grammar else {}
    elif kind == "llama-server":
        known |= {key: getattr(sampling, key) for key in ("top_k", "min_p", "repeat_penalty")}
        known |= {"grammar": request.grammar} if request.grammar else {}
    elif request.schema:
        held = {"name": "reply", "schema": json.loads(request.schema), "strict": True}
        known |= {"response_format": {"type": "json_schema", "json_schema": held}}
    elif request.grammar:
        raise ChatError("This engine can't be held to a JSON schema: it isn't ours, nor vLLM.")
    return known


def _logprobs(told: dict[str, Any], ids: list[int]) -> list[TokenLogProb]:
    """The log-probabilities in a choice, in the form of chats or in that of completions, which has no ids."""
    if "content" in told:
        return [
            replace(_logprob(token), top=tuple(map(_logprob, token["top_logprobs"])))
            for token in told["content"] or ()
        ]
    found = []
    for i, text, logprob, top in zip(
        ids, told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
    ):
        others = [TokenLogProb(-1, other.encode(), float(p)) for other, p in (top or {}).items()]
        found.append(TokenLogProb(i, text.encode(), _figure(logprob), tuple(others)))
    return found


def _logprob(token: dict[str, Any]) -> TokenLogProb:
    text = token.get("bytes")
    text = token["token"].encode() if text is None else bytes(text)
    return TokenLogProb(int(token.get("id", -1)), text, _figure(token["logprob"]))


def _figure(logprob: Any) -> float | None:
    """A log-probability; engines have null for parts of a character (`TokenLogProb`)."""
    return None if logprob is None else float(logprob)


def packed(messages: Messages) -> list[int]:
    """A chat as numbers, so that it goes the way of every prompt: its JSON, BYTES_PER_ID bytes each.

    As many as its tokens are, about: English has four bytes a token, other languages two or three. Its
    thoughts stay behind: not every API takes them.
    """
    bare = [{"role": message["role"], "content": message["content"]} for message in messages]
    data = json.dumps(bare, ensure_ascii=False).encode("utf-8", "replace")
    data += b" " * (-len(data) % BYTES_PER_ID)
    return [int.from_bytes(data[i : i + BYTES_PER_ID], "big") for i in range(0, len(data), BYTES_PER_ID)]


def unpacked(ids: list[int]) -> Messages:
    """The chat that `packed` made into `ids`. Raises ChatError for ids that are none of a chat."""
    try:
        chat: Messages = json.loads(b"".join(i.to_bytes(BYTES_PER_ID, "big") for i in ids))
        return [{"role": message["role"], "content": message["content"]} for message in chat]
    except NOT_A_REPLY:
        raise ChatError(ONLY_MESSAGES) from None


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield each event, and whether it had to be waited for. Raises Unavailable."""
    if response.headers.get_content_type() == "application/json":  # it doesn't stream
        yield _event(response.read(LONGEST_LINE)), True
        return
    total, before = 0, time.perf_counter()
    while line := response.readline(LONGEST_LINE):
        total += len(line)
        if total > LONGEST_STREAM or (not line.endswith(b"\n") and len(line) == LONGEST_LINE):
            raise Unavailable("its reply has no end")
        if not line.startswith(b"data:"):
            continue  # a blank line, a comment that keeps the connection open, an event's name
        if (data := line[5:].strip()) == b"[DONE]":
            yield DONE, True
            return
        now = time.perf_counter()
        yield _event(data), now - before > 0.001
        before = time.perf_counter()


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise Unavailable("what it sends is no reply")
    if event.get("error"):
        raise Unavailable(f"it says: {error_text(data) or 'error'}")
    return event
