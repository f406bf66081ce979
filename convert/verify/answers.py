"""Check: eight greedy answers through the app's own engine and prompt code, beside the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from convert.verify.limits import (
    BEGINNING,
    EVERY_ONE,
    FORGIVEN,
    OTHER_BEGINNINGS,
    SURE_16_BIT,
    SURE_QUANTISED,
    UNSTOPPED,
    Check,
    Limit,
)
from core.engine import Request, Sampling
from core.model import Model
from core.rows import Row

PROMPTS = 8
GREEDY = Sampling(temperature=0, repeat_penalty=1, max_tokens=48)


@dataclass(frozen=True)
class Answer:
    """What the unquantised checkpoint answers, greedily; `ids` without the stop token."""

    messages: list[dict[str, str]]  # ends with the user's turn
    prompt_ids: list[int]
    ids: list[int]
    margins: list[float]  # by how much, in nats, each token was likelier than the next
    stopped: bool  # with a stop token, within the budget
    empty: bool  # nothing but whitespace


def prompts(rows: Sequence[Row]) -> list[list[dict[str, str]]]:
    """Return the beginnings of the test rows, up to their first user turn, each once."""
    found: list[list[dict[str, str]]] = []
    for row in [row for row in rows if row.split == "test"] or rows:
        roles = [message["role"] for message in row.messages]
        beginning = row.messages[: roles.index("user") + 1] if "user" in roles else []
        if beginning and beginning not in found:
            found.append(beginning)
    return found


def check_answers(
    model: Model, reference: Sequence[Answer], quantised: bool, on_answer: Callable[[], None]
) -> list[Check]:
    """Ask `model` the same as the checkpoint. What the checkpoint doesn't do is not asked of the GGUF.

    Raises ChatError when the engine fails.
    """
    same_prompt, replied, stopped, began = [], [], [], []
    for answer in reference:
        ids = model.encoder.encode(answer.messages)
        same_prompt.append(ids == answer.prompt_ids)
        generation = model.engine.generate(Request(ids, GREEDY))
        text = "".join(chunk.text for chunk in generation)
        if not answer.empty:
            replied.append(bool(text.strip()))
        if answer.stopped:
            stopped.append(generation.stats.finish_reason == "stop")
        if sure := sure_tokens(answer, SURE_QUANTISED if quantised else SURE_16_BIT):
            began.append(generation.stats.ids[: len(sure)] == sure)
        on_answer()
    return [
        _counted("prompts", same_prompt, "have the checkpoint's ids", EVERY_ONE),
        _counted("replies", replied, "are not empty", EVERY_ONE),
        _counted("stops", stopped, f"end within {GREEDY.max_tokens} tokens", UNSTOPPED, FORGIVEN),
        _counted("beginnings", began, "begin as the checkpoint's", OTHER_BEGINNINGS, FORGIVEN),
    ]


def sure_tokens(answer: Answer, margin: float) -> list[int]:
    """Return the tokens with which the answer must begin: the first few, up to where rounding may decide."""
    sure = takewhile(lambda pair: pair[1] >= margin, zip(answer.ids, answer.margins, strict=True))
    return [token for token, _ in sure][:BEGINNING]


def _counted(name: str, good: list[bool], what: str, limit: Limit, forgiven: int = 0) -> Check:
    if not good:
        return Check(name, "n/a", "none to compare", "the checkpoint does it for no prompt")
    verdict = limit.judge(max(0, len(good) - sum(good) - forgiven) / len(good))
    reason = "" if verdict == "ok" else "where the checkpoint does"
    return Check(name, verdict, f"{sum(good)} of {len(good)} {what}", reason)
