"""One model of engines elsewhere as one Engine: a chat stays where its prompt is in the cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite

from chat.remote import Endpoint, Unavailable
from chat.remote_reply import NOT_A_REPLY, ONLY_MESSAGES, OpenAIGeneration, RemoteGeneration
from chat.remote_vocab import Tokenizer
from core.engine import Chunk, Generation, Request, Stats
from core.entry import Entry
from core.errors import ChatError, EngineDied
from core.lora import strengths

MOST_CHATS = 10_000  # whose engine is remembered
WHOLE_CHAT = "At vLLM the repetition penalty counts the whole chat, not its last tokens."
BY_MESSAGES = (
    "This chat goes to its engine as messages: the chat template and control tokens are that engine's, "
    "tokens are estimated, and a cut reply can be retried but not continued."
)
NOT_SENT = "Top-k, min-p and the repetition penalty aren't sent."


@dataclass
class Served:
    """One model of the menu, and the engines that have it, each with the model's name there."""

    name: str
    entry: Entry
    tokenizer: Tokenizer | None  # None: by messages
    why: str = ""  # that is, where a file here was thought to be its own
    at: dict[Endpoint, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What the page must say of it: what isn't ours."""
        kinds = {endpoint.kind for endpoint in self.at}
        if self.tokenizer:
            return WHOLE_CHAT if "vLLM" in kinds else ""
        return BY_MESSAGES if kinds < {"vLLM", "llama-server"} else f"{BY_MESSAGES} {NOT_SENT}"


class RemoteEngine:
    """One model at one or several engines. A chat stays where it was, unless that is down or full."""

    label = "elsewhere"

    def __init__(self, served: Served, n_ctx: int, overrides: Mapping[str, int]) -> None:
        self.n_ctx = n_ctx
        self.shown: Mapping[str, int] = {}
        self._served = served
        self.ends, self.stop_ids = frozenset(overrides.values()), list[int]()
        if served.tokenizer:
            self.stop_ids = sorted({*served.tokenizer.file.vocab.eog_ids, *self.ends})
        self._homes: OrderedDict[str, Endpoint] = OrderedDict()
        self._lock = threading.Lock()
        if not self.alive():
            raise self.nobody({})

    @property
    def slots(self) -> int:
        """Replies at a time."""
        return max(1, sum(endpoint.slots for endpoint in self._served.at if endpoint.up))

    @property
    def n_cells(self) -> int:
        """Tokens of all replies at a time: each has a context of its own there."""
        return self.slots * self.n_ctx

    def tokenize(self, text: str, special: bool) -> list[int]:
        if self._served.tokenizer is None:
            raise ChatError(ONLY_MESSAGES)
        return self._served.tokenizer(text, special)

    def generate(self, request: Request) -> PooledGeneration:
        size = len(request.ids)
        if not 0 < size < self.n_ctx:
            raise ChatError(f"A prompt of {size} tokens does not fit a context of {self.n_ctx} tokens.")
        strengths((), request.adapters)  # none elsewhere is ours
        return PooledGeneration(self, replace(request, sampling=request.sampling.seeded()))

    def reply(self, endpoint: Endpoint, request: Request) -> RemoteGeneration:
        """A reply of one of the engines."""
        by_ids = self._served.tokenizer is not None
        if by_ids and endpoint.kind == "llama-server":
            return RemoteGeneration(endpoint, self, request)
        return OpenAIGeneration(endpoint, self, request, self._served.at[endpoint], by_ids)

    @contextmanager
    def taking(self, chat: str, tried: Mapping[Endpoint, str]) -> Iterator[Endpoint]:
        """Hold an engine for a reply: the chat's own, else the least busy; none that was `tried`."""
        with self._lock:
            up = [endpoint for endpoint in self._served.at if endpoint.up and endpoint not in tried]
            free = [endpoint for endpoint in up if endpoint.running < endpoint.slots] or up
            if not free:
                raise self.nobody(tried)
            chosen = self._homes.get(chat)
            if chosen not in free:
                chosen = min(free, key=lambda endpoint: (endpoint.running / endpoint.slots, endpoint.taken))
            assert chosen
            if chat:
                self._homes[chat] = chosen
                self._homes.move_to_end(chat)
                while len(self._homes) > MOST_CHATS:
                    self._homes.popitem(last=False)
            chosen.running += 1
            chosen.taken += 1
        try:
            yield chosen
        finally:
            with self._lock:
                chosen.running -= 1

    def nobody(self, tried: Mapping[Endpoint, str]) -> EngineDied:
        """The error where no engine takes a reply. Those that are down are looked at again soon."""
        for endpoint in self._served.at:
            if not endpoint.up:
                endpoint.fail(endpoint.reason)
        reasons = {endpoint: endpoint.reason for endpoint in self._served.at} | dict(tried)
        why = "; ".join(f"{endpoint.url}: {reason}" for endpoint, reason in reasons.items())
        why = why or "they have other models now"
        return EngineDied(f"No engine elsewhere takes {self._served.name} ({why}). Retry in a moment.")

    def cut(self, endpoint: Endpoint, reason: Unavailable) -> EngineDied:
        """The error where an engine breaks a reply off."""
        what = "Continue or retry it." if self._served.tokenizer else "Retry it."
        where = f"The engine at {endpoint.url} stopped in the middle of the reply"
        return EngineDied(f"{where}: {reason}. What was written stays. {what}")

    def settle(self, cancelled: Callable[[], bool]) -> None:
        pass  # nothing here to be measured

    def alive(self) -> bool:
        return any(endpoint.up for endpoint in self._served.at)

    def close(self) -> None:
        pass  # the engines are others'


class PooledGeneration:
    """A reply of whichever engine takes it: until its first token, another one may."""

    def __init__(self, engine: RemoteEngine, request: Request) -> None:
        self.stats = Stats(prompt_tokens=len(request.ids), seed=request.sampling.seed or 0)
        self._engine, self._request = engine, request
        self._current: Generation | None = None
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        if self._current:
            self._current.cancel()

    def __iter__(self) -> Iterator[Chunk]:
        tried: dict[Endpoint, str] = {}
        while True:
            with self._engine.taking(self._request.chat, tried) as endpoint:
                begun = False
                try:
                    for chunk in self._of(endpoint):
                        begun = begun or bool(chunk.text)
                        yield chunk
                    return
                except Unavailable as error:
                    tried[endpoint] = str(error)
                    if not error.busy:
                        endpoint.fail(str(error))
                    if begun:
                        raise self._engine.cut(endpoint, error) from error

    def _of(self, endpoint: Endpoint) -> Iterator[Chunk]:
        """The reply of one engine, or Unavailable where what it sends is none."""
        generation = self._current = self._engine.reply(endpoint, self._request)
        self.stats = generation.stats
        if self._cancelled:
            generation.cancel()
        try:
            for chunk in generation:
                _check(generation.stats)
                yield replace(chunk, text=chunk.text.encode("utf-8", "replace").decode())
            _check(generation.stats)
        except NOT_A_REPLY as error:
            raise Unavailable("what it sends is no reply") from error


def _check(stats: Stats) -> None:
    """Raise ValueError for figures that are none: they were sent by a stranger."""
    numbers = (stats.prompt_tokens, stats.cached_tokens, stats.prompt_per_s, stats.generated_per_s)
    if not all(isinstance(n, int | float) and isfinite(n) for n in numbers):
        raise ValueError("not a number")
    if not all(type(i) is int for i in stats.ids[-64:]):
        raise ValueError("not an id")
