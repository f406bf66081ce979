"""One reply of llama-server: the request for it, and its event stream."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from core.engine import CHUNK_INTERVAL_S, PENALTY_WINDOW, Chunk, Request, Stats, TokenLogProb
from core.errors import ChatError, EngineDied

LAST_EVENT = 2048  # bytes; it repeats the prompt and all settings, a token's event has 150


class Server(Protocol):
    """The server as a reply needs it."""

    n_ctx: int
    port: int
    headers: dict[str, str]
    shown: Mapping[str, int]

    def tokenize(self, text: str, special: bool) -> list[int]: ...

    def died(self) -> EngineDied: ...


class LlamaServerGeneration:
    """One reply, read from the server's event stream."""

    def __init__(self, engine: Server, request: Request, scales: list[float]) -> None:
        self.stats = Stats(prompt_tokens=len(request.ids), seed=request.sampling.seed or 0)
        self._engine = engine
        self._top = request.logprobs
        self._logprobs: list[TokenLogProb] = []  # of the reply's ids, where they are asked for
        n_predict = min(request.sampling.max_tokens, engine.n_ctx - len(request.ids))
        self._request = completion(request, scales, n_predict, preserved_tokens=list(engine.shown))
        self._connection = http.client.HTTPConnection("127.0.0.1", engine.port)
        self._socket: socket.socket | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Shut the socket down: the server stops after the batch that it is in."""
        self._cancelled = True
        if self._socket:
            with suppress(OSError):  # the reply has just ended
                self._socket.shutdown(socket.SHUT_RDWR)

    def __iter__(self) -> Iterator[Chunk]:
        started = time.perf_counter()
        try:
            yield from self._chunks(started)
        except (OSError, http.client.HTTPException) as error:
            if not self._cancelled:
                raise self._engine.died() from error
        finally:
            self._connection.close()
            if self._socket:
                self._socket.close()
        if not self.stats.finish_reason:
            if not self._cancelled:
                raise self._engine.died()
            self.stats.finish_reason = "cancelled"
        self.stats.generated_tokens = len(self.stats.ids)

    def _chunks(self, started: float) -> Iterator[Chunk]:
        text, newest, ready, given, last = "", "", 0, 0, 0.0
        for event, waited in self._until_stopped():
            if progress := event.get("prompt_progress"):
                self.stats.cached_tokens = progress["cache"]
                yield Chunk(prompt_done=progress["processed"])
                continue
            if event["stop"]:
                text += "" if self._finish(event) else newest
                break
            text += newest
            ready = len(self.stats.ids)
            self._take_ids(event)
            newest = event["content"]  # kept back: a stop token that is user-defined has a text
            now = time.perf_counter()
            self.stats.first_token_s = self.stats.first_token_s or now - started
            # Wait, then drain: two wake-ups an interval instead of one a token leave the cores to llama.cpp.
            if text and (waited or not last) and now - last >= CHUNK_INTERVAL_S:
                yield self._chunk(text, given, ready)
                text, given, last = "", ready, now
                self._collect()
        else:
            text += newest  # the server hung up: what it sent stays
        yield self._chunk(text, given, len(self.stats.ids))

    def _collect(self) -> None:
        """Let events come for CHUNK_INTERVAL_S, or until the last one is there: no other is that long."""
        line = self._socket
        assert line is not None
        with suppress(OSError):  # the time is over, mostly; what else is wrong the next event tells
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, LAST_EVENT)
            line.settimeout(CHUNK_INTERVAL_S)
            line.recv(1, socket.MSG_PEEK)
        if self._cancelled:  # the server sees it after a token: who asks next finds the slot free
            time.sleep(CHUNK_INTERVAL_S)
        with suppress(OSError):
            line.settimeout(None)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _chunk(self, text: str, start: int, end: int) -> Chunk:
        """Return `text` with the reply's ids from `start` to `end`."""
        logprobs = tuple(self._logprobs[start:end])
        return Chunk(text, tuple(self.stats.ids[start:end]), logprobs=logprobs)

    def _until_stopped(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield the events; a Stop ends them without an error, so that the text of all ids is handed on."""
        try:
            yield from self._events()
        except (OSError, http.client.HTTPException):
            if not self._cancelled:
                raise

    def _events(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield each event, and whether it had to be waited for."""
        self._connection.connect()
        self._socket = self._connection.sock
        if self._cancelled:
            return
        self._connection.request("POST", "/completion", self._request, self._engine.headers)
        response = self._connection.getresponse()
        if response.status != 200:
            raise refusal(response)
        before = time.perf_counter()
        for line in _lines(response):
            if line.startswith(b"data: "):  # else it is blank, or a comment that keeps the line open
                now = time.perf_counter()
                yield json.loads(line[6:]), now - before > 0.001
                before = time.perf_counter()

    def _take_ids(self, event: dict[str, Any]) -> None:
        """Add the event's ids to the reply's. A character of several tokens arrives with its last id only:
        the others are found by tokenising it; where that fails, the history falls back to the text."""
        gap = event["tokens_predicted"] - len(self.stats.ids)
        ids = event["tokens"]
        if gap > len(ids):
            found = self._engine.tokenize(event["content"], False)[-gap:]
            ids = found if len(found) == gap and found[-1] == ids[-1] else [-1] * (gap - 1) + ids
        self.stats.ids += ids
        if self._top is not None:
            self._logprobs += _logprobs(event, ids, self._top)

    def _finish(self, event: dict[str, Any]) -> bool:
        """Note how the reply ended; True if its newest id was the stop token, which is no part of it."""
        ended = event["stop_type"] == "eos"
        stopped: bool = ended and event["tokens_predicted"] == len(self.stats.ids)
        if stopped:
            self.stats.ids.pop()
            del self._logprobs[len(self.stats.ids) :]
        self.stats.finish_reason = "stop" if ended else "length"
        timings = event["timings"]
        self.stats.cached_tokens = timings["cache_n"]
        self.stats.prompt_per_s = timings["prompt_per_second"] or 0.0
        self.stats.generated_per_s = timings["predicted_per_second"] or 0.0
        return stopped


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the lines as they come; one that was cut is none, where `readline` would hand it on."""
    rest = b""
    with suppress(http.client.IncompleteRead):  # the server hung up
        while part := response.read1():
            *lines, rest = (rest + part).split(b"\n")
            yield from lines


def _logprobs(event: dict[str, Any], ids: list[int], top: int) -> list[TokenLogProb]:
    """Return the event's log-probabilities, one for each of its `ids`."""

    def read(token: dict[str, Any], alternatives: tuple[TokenLogProb, ...] = ()) -> TokenLogProb:
        return TokenLogProb(token["id"], bytes(token["bytes"]), token["logprob"], alternatives)

    told = event.get("completion_probabilities", [])
    silent = [TokenLogProb(i, b"", None) for i in ids[: len(ids) - len(told)]]
    return silent + [read(token, tuple(map(read, token["top_logprobs"][:top]))) for token in told]


def completion(
    request: Request, scales: list[float], n_predict: int, stream: bool = True, **more: list[str]
) -> str:
    """The body of a request: our fields only, never what a client sent. `scales` are those of all adapters:
    without one of them the server would take what its cache has from another adapter."""
    sampling = request.sampling
    fields = sampling.model_dump(exclude={"max_tokens"})
    fields |= {
        "prompt": list(request.ids),
        "n_predict": n_predict,
        "repeat_last_n": PENALTY_WINDOW,
        "cache_prompt": stream,
    }
    fields |= {"stream": stream, "return_tokens": True, "return_progress": stream, "response_fields": None}
    fields |= {"lora": [{"id": i, "scale": scale} for i, scale in enumerate(scales)]} if scales else {}
    fields |= {"grammar": request.grammar} if request.grammar else {}
    fields |= {"n_probs": max(1, request.logprobs)} if request.logprobs is not None else {}
    fields |= more
    if sampling.temperature == 0:
        fields |= {"samplers": ["penalties", "top_k"], "top_k": 1}  # greedy: nothing else to compute
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def refusal(response: http.client.HTTPResponse) -> ChatError:
    """The error for an answer that is none, with the server's own words."""
    try:
        message = json.load(response)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.reason
    return ChatError(f"llama-server refused the request: {message}")
