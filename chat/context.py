"""One turn of a chat: fit the messages into the context, let the agent reply, count what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from chat.turn_queue import Waiting
from core.engine import Engine, Generation, Request, Stats, TokenLogProb
from core.errors import TooLong
from core.prompt import Messages

# A text of more bytes than this for each token of context can't fit, nor can more messages than this allows:
# both are left out, or refused, without being read.
BYTES_PER_TOKEN_LIMIT, TOKENS_PER_MESSAGE = 64, 3
# After turns drop out, the rest fills this much, so that the next turns find their beginning in the cache.
KEEP_SHARE = 0.6
MIN_REPLY = 16  # tokens that must be left for a reply

Encode = Callable[[Messages], list[int]]


@dataclass(frozen=True)
class Plan:
    """What is sent to the model."""

    messages: Messages
    ids: list[int]
    left_out: int  # messages at the start of the chat that no longer fit, the system message not counted


@dataclass
class TurnState:
    """Where a turn stands. `stats` is complete, and `done` true, in the last one only."""

    text: str = ""
    prompt_done: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_token_s: float = 0.0
    left_out: int = 0
    stopped: bool = False  # at a stop text
    waiting: Waiting | None = None  # its place in line, before it begins
    logprobs: Sequence[TokenLogProb] = ()  # of the tokens of `text`, where they are asked for
    done: bool = False
    stats: Stats = field(default_factory=Stats)


def plan(messages: Messages, encode: Encode, n_ctx: int, max_tokens: int, left_out: int = 0) -> Plan:
    """Choose the messages that fit `n_ctx` tokens with room for a reply; the newest and the system one stay.

    `left_out` messages are out already and stay out: a start that moved every turn would be evaluated anew
    every turn. They return when there is room again: a turn was taken back, the model has a larger context.
    Raises TooLong when the newest message alone is too large.
    """
    system, chat = ([messages[0]], messages[1:]) if messages[0]["role"] == "system" else ([], messages)
    first = _first_worth_reading(system, chat, n_ctx)
    starts = [i for i, m in enumerate(chat) if i > first and m["role"] == "user"]
    reserve = max(MIN_REPLY, min(max_tokens, n_ctx // 4))
    target = int((n_ctx - reserve) * KEEP_SHARE)
    left_out = left_out if left_out in starts else first
    if left_out > first:
        before = [first, *starts][starts.index(left_out)]
        if len(encode(system + chat[before:])) <= target:
            left_out = first
    ids = encode(system + chat[left_out:])
    if len(ids) + reserve > n_ctx:
        later = [start for start in starts if start > left_out]
        left_out, ids = _drop_a_block(system, chat, encode, later, target) or (left_out, ids)
    if len(ids) + MIN_REPLY > n_ctx:
        raise TooLong(
            f"This message has {len(ids):,} tokens with its surroundings; the model's context is {n_ctx:,} "
            f"and a reply needs {MIN_REPLY}. Shorten it, or choose a model with a larger context."
        )
    return Plan(system + chat[left_out:], ids, left_out)


def _first_worth_reading(system: Messages, chat: Messages, n_ctx: int) -> int:
    """Where the part of the chat begins that could fit, judged by bytes: tokenising more may take minutes."""
    limit = n_ctx * BYTES_PER_TOKEN_LIMIT
    sizes = [_bytes(m) for m in chat]
    for name, size in [("This message", sizes[-1]), *(("The system message", _bytes(m)) for m in system)]:
        check_size(name, size, n_ctx)
    total, first = 0, len(chat)
    while first and total + sizes[first - 1] <= limit and (len(chat) - first) * TOKENS_PER_MESSAGE < n_ctx:
        first -= 1
        total += sizes[first]
    starts = [0, *(i for i, m in enumerate(chat) if i and m["role"] == "user")]
    return next((start for start in starts if start >= first), starts[-1])


def check_size(name: str, size: int, n_ctx: int) -> None:
    """Raises TooLong for a text, called `name`, of more bytes than `n_ctx` tokens hold."""
    limit = n_ctx * BYTES_PER_TOKEN_LIMIT
    if size > limit:
        raise TooLong(
            f"{name} has {size:,} bytes; the model's context of {n_ctx:,} tokens holds "
            f"{limit:,} at the very most. Shorten it."
        )


def _bytes(message: dict[str, str]) -> int:
    return sum(len(text.encode()) for key, text in message.items() if key != "role")


def _drop_a_block(
    system: Messages, chat: Messages, encode: Encode, starts: list[int], target: int
) -> tuple[int, list[int]] | None:
    """Return the first of `starts` that brings the prompt down to `target` tokens, found by bisection.

    The last one if none does; None without any.
    """
    found = None
    low, high = 0, len(starts) - 1
    while low <= high:
        middle = (low + high) // 2
        shorter = encode(system + chat[starts[middle] :])
        if len(shorter) <= target or middle == len(starts) - 1:
            found = starts[middle], shorter
            high = middle - 1
        else:
            low = middle + 1
    return found


class Turn:
    """One reply in the making: iterate over `run()`; `cancel()` from any other thread, at any moment."""

    def __init__(self) -> None:
        self._generation: Generation | None = None
        self.cancelled = False

    def run(
        self,
        engine: Engine,
        planned: Plan,
        request: Request,
        prefix: str = "",
        stops: Sequence[str] = (),
        raw: bool = False,
    ) -> Iterator[TurnState]:
        """Reply to `planned` as `request` says. `prefix` is the text that a continued reply begins with.

        One of `stops` ends the reply where it appears. `raw` leaves the blanks that a text begins with.
        """
        from chat.agent import EngineProvider, start_reply  # loads llama.cpp: not when the app is imported

        started = time.perf_counter()
        progress = TurnState(prefix, prompt_tokens=len(planned.ids), left_out=planned.left_out)
        provider = EngineProvider(engine)
        pieces = start_reply(provider, planned.messages, request)
        generation = self._generation = provider.generation
        assert generation is not None
        text = prefix
        try:
            if self.cancelled:
                generation.cancel()
            for piece in pieces:
                if progress.stopped:
                    continue
                # A reply's first space belongs to the tokenizer (SentencePiece), not to the text.
                text += piece if text or raw else piece.lstrip()
                progress.text, progress.stopped = before_stop(text, stops, len(prefix))
                progress.logprobs = _of_text(provider.logprobs, progress.text[len(prefix) :])
                progress.prompt_done = provider.prompt_done
                progress.generated_tokens = len(generation.stats.ids)
                if progress.stopped:
                    progress.text = progress.text if raw else progress.text.rstrip()
                    generation.cancel()
                if piece and not progress.first_token_s:
                    progress.first_token_s = time.perf_counter() - started
                yield progress
        finally:
            generation.cancel()  # the reader may leave at any point; the engine must not go on without one
        generation.stats.first_token_s = progress.first_token_s  # as the page sees it, waiting included
        if progress.stopped:
            generation.stats.finish_reason = "stop"
            generation.stats.ids = [-1]  # the ids go on after it
        else:
            progress.text, progress.logprobs = text, tuple(provider.logprobs)
        progress.stats, progress.done = generation.stats, True
        yield progress

    def cancel(self) -> None:
        """Stop the reply; what has been written stays."""
        self.cancelled = True
        if self._generation:
            self._generation.cancel()


def before_stop(text: str, stops: Sequence[str], start: int = 0) -> tuple[str, bool]:
    """Return the part of `text` that cannot belong to one of `stops`, and whether all of one is there.

    They are looked for from `start` on, but for one that began before. A beginning of one at the end of the
    text waits for what comes next: it must not flash on the page.
    """
    found = [text.find(stop, max(0, start - len(stop) + 1)) for stop in stops]
    if whole := [at for at in found if at >= 0]:
        return text[: min(whole)], True
    held = 0
    for stop in stops:
        ends = (n for n in range(min(len(stop) - 1, len(text)), held, -1) if text.endswith(stop[:n]))
        held = max(held, next(ends, 0))
    return text[: len(text) - held], False


def _of_text(tokens: Sequence[TokenLogProb], text: str) -> Sequence[TokenLogProb]:
    """The first of `tokens`, as many as `text` has; blanks before it aren't counted."""
    if not tokens:  # nobody asked for them, and the text is read at every piece
        return ()
    room, count, begun = len(text.encode()), 0, False
    for token in tokens:
        size = len(token.text if begun else token.text.lstrip())
        if size > room:
            break
        room, begun, count = room - size, begun or size > 0, count + 1
    return tokens[:count]
