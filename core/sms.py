"""Marketing messages: the question that a model is trained on and asked, and what a message has in it."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LABELS = ("yes", "no")
QUESTION = "Will somebody who gets this message buy? Answer yes or no."

Discount = Literal["none", "percent", "amount", "free_shipping", "buy_one_get_one"]
Currency = Literal["none", "USD", "EUR", "GBP", "INR"]


class Features(BaseModel):
    """What a marketing message has in it."""

    model_config = ConfigDict(extra="forbid")

    discount: Discount = Field(description="the kind of discount that is offered")
    size: int = Field(ge=0, le=100_000, description="percent or money off; 0 without a discount of that kind")
    currency: Currency = Field(description="of a price or discount in it")
    deadline: bool = Field(description="the offer ends at a time that is said")
    link: bool = Field(description="has a web address, also a disguised one")
    call_to_action: bool = Field(description="asks to shop, buy, book, tap, reply or visit")
    personal: bool = Field(description="addresses the reader by name")
    emoji: bool
    opt_out: bool = Field(description="says how to get no more messages")


FIELDS = tuple(Features.model_fields)

# What a run's scores have of likelihoods, and of what needs no language model: as <baseline>_<figure>.
FIGURES = ("auc", "log_loss", "brier", "calibration_error", "share_of_truth_reached")
BASELINES = {
    "mean_rate": "mean rate",
    "logistic_regression": "logistic regression",
    "gradient_boosting": "gradient boosting",
    "tfidf": "TF-IDF",
}

# The 7-bit alphabet of 3GPP TS 23.038, section 6.2.1; those of its extension count twice.
_GSM = set(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ ÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "ÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_EXTENSION = set("^{}\\[~]|€")


def prompt(message: str) -> str:
    """What the user asks."""
    return f"{QUESTION}\n\n{message}"


def is_of_baseline(score: str) -> bool:
    """Whether a score of a run is that of a baseline."""
    return any(score == f"{name}_{figure}" for name in BASELINES for figure in FIGURES)


def segments(message: str) -> int:
    """How many SMS a message is sent as: 160 characters of the 7-bit alphabet in one and 153 in each of
    several, or 70 and 67 UTF-16 units where a character isn't in it."""
    if set(message) <= _GSM | _GSM_EXTENSION:
        units, one, many = len(message) + sum(c in _GSM_EXTENSION for c in message), 160, 153
    else:
        units, one, many = len(message.encode("utf-16-le")) // 2, 70, 67
    return max(1, -(-units // many)) if units > one else 1


def capitals(message: str) -> float:
    """The share of capitals among a message's letters, 0 to 1."""
    letters: list[str] = re.findall(r"[^\W\d_]", message)
    return sum(letter.isupper() for letter in letters) / max(1, len(letters))


def logit(probability: float) -> float:
    """Log-odds, of 0 and 1 too."""
    bounded = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(bounded / (1 - bounded))
