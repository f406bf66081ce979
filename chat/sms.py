"""Marketing messages asked of a model of the menu: their features as JSON, whether they sell, and why."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

from pydantic import ValidationError

from chat.context import TurnState
from chat.conversation import Conversation
from chat.reply import Sessions
from core.engine import Sampling
from core.errors import ChatError
from core.sms import LABELS, Features, logit, prompt

ASKED = "You read marketing text messages and write down what is in each."
MOST_TOKENS = 200  # of a reply; the features take about 80
ONE_TOKEN = Sampling(temperature=0, repeat_penalty=1, max_tokens=1)
LOOKED_AT = 400  # likeliest tokens, among which both labels should be
MOST_WORDS = 60  # of a message, each left out once


@dataclass(frozen=True)
class Reply:
    """A model's reading of a message: `features`, or the `fault` for which there are none; `seconds`."""

    features: Features | None
    fault: str
    seconds: float


def ask_features(
    sessions: Sessions, model: str, message: str, key: str = "", max_tokens: int = MOST_TOKENS
) -> Reply:
    """Have `model` fill the schema of Features, held to it by a grammar. Raises ChatError."""
    sampling = Sampling(temperature=0, repeat_penalty=1, max_tokens=max_tokens)
    chat = Conversation(
        model=model, system_prompt=ASKED, sampling=sampling, json_schema=Features.model_json_schema()
    )
    chat.say(message)
    began = time.perf_counter()
    key = key or uuid4().hex
    state = _ended(sessions.reply(key, chat, user=key))
    seconds = time.perf_counter() - began
    if state.stats.fault:
        return Reply(None, state.stats.fault, seconds)
    try:
        return Reply(Features.model_validate_json(chat.messages[-1].content), "", seconds)
    except ValidationError as error:  # what the grammar can't say
        return Reply(None, f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}", seconds)


def likelihood(sessions: Sessions, model: str, message: str, key: str = "") -> float:
    """The probability of "yes" against "no" as the reply's first token (0 to 1). Raises ChatError."""
    chat = Conversation(model=model, sampling=ONE_TOKEN)
    chat.say(prompt(message))
    key = key or uuid4().hex
    state = _ended(sessions.reply(key, chat, user=key, logprobs=LOOKED_AT))
    found: dict[bytes, float] = {}
    for token in state.logprobs[0].top if state.logprobs else ():
        if token.logprob is not None:
            found.setdefault(token.text, token.logprob)
    yes, no = (found.get(label.encode()) for label in LABELS)
    if yes is None and no is None:
        raise ChatError(
            f"{model} answers neither {LABELS[0]!r} nor {LABELS[1]!r} to this question. Choose another "
            "model, or train one: python train/qlora.py mistral-7b-sms"
        )
    floor = min(found.values())  # of what isn't among them: it is at most as likely
    return 1 / (1 + math.exp((floor if no is None else no) - (floor if yes is None else yes)))


def without_each_word(
    sessions: Sessions, model: str, message: str, whole: float, key: str = ""
) -> Iterator[tuple[str, float]]:
    """Yield each word with how many log-odds of "yes" it adds: those of the `whole` message less those
    without it. Raises ChatError."""
    words = list(re.finditer(r"\S+", message))
    if len(words) > MOST_WORDS:
        raise ChatError(f"The message has {len(words)} words; {MOST_WORDS} are looked at. Shorten it.")
    for word in words if len(words) > 1 else ():
        rest = " ".join((message[: word.start()] + message[word.end() :]).split())
        yield word[0], logit(whole) - logit(likelihood(sessions, model, rest, key))


def _ended(states: Iterator[TurnState]) -> TurnState:
    """Go through a turn; how it ended."""
    *_, last = states
    if last.stats.finish_reason == "cancelled":
        raise ChatError("Stopped.")
    return last
