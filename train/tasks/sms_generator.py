"""Synthetic marketing SMS whose conversion follows a known function.

Nothing of it is real: no brand, no message, no customer. What is drawn, and how it sells, is all in this
file, so that a model can be judged by how much of the known function it finds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

MESSAGES_OF_A_CAMPAIGN = 8

# In log-odds of a conversion. The campaign's own appeal and the row's noise are normal; no text shows them.
INTERCEPT = -2.2
WEIGHTS = {
    "percent": 0.05,  # a percent of discount
    "amount": 0.07,  # a dollar off
    "free_shipping": 0.8,
    "bogo": 1.6,
    "urgency": 0.8,
    "personal": 0.6,
    "characters_over_120": -0.012,
    "capitals": -1.0,
    "opt_out": -0.3,
}
CAMPAIGN_NOISE = 0.3
ROW_NOISE = 0.15

_BRANDS = ("Lumovi", "Fernwaye", "Oakrill", "Brisvale", "Harbono", "Nordim", "Peprilo", "Zevira")
_PRODUCTS = ("running shoes", "coffee beans", "summer dresses", "headphones", "garden tools", "face creams")
_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo")
_URGENT = ("Today only!", "Ends at midnight!", "Last chance!", "Only 24 hours left!")
_CALM = ("", "Come and see.", "We thought you might like it.", "New in the shop this week.")
_FILLER = (
    "Our team picked the best of the season for you, in all sizes and colours.",
    "Members also get points on each order, in the shop and online.",
)
_OPT_OUT = "Reply STOP to opt out."


@dataclass(frozen=True)
class Offer:
    """What a message offers and how it says it; one offer, or none."""

    percent: int = 0
    amount: int = 0
    free_shipping: bool = False
    bogo: bool = False
    urgency: bool = False
    personal: bool = False
    capitals: bool = False
    opt_out: bool = False


@dataclass(frozen=True)
class Row:
    """A message and what came of it."""

    campaign: str
    message: str
    sends: int
    conversions: int  # how many of the `sends` bought
    converted: int  # whether one customer more did, 0 or 1
    probability: float  # the true one, for judging only


def probability(offer: Offer, message: str, noise: float) -> float:
    """The true probability that a customer who gets `message` buys: logistic in the weights above."""
    features: dict[str, float] = vars(offer) | {"characters_over_120": max(0, len(message) - 120)}
    return 1 / (1 + math.exp(-INTERCEPT - noise - sum(WEIGHTS[name] * features[name] for name in WEIGHTS)))


def rows(count: int, seed: int) -> Iterator[Row]:
    """Yield `count` rows, eight to a campaign; the same for the same seed."""
    draw = random.Random(seed)
    for i in range(count):
        if i % MESSAGES_OF_A_CAMPAIGN == 0:
            brand, product = draw.choice(_BRANDS), draw.choice(_PRODUCTS)
            appeal = draw.gauss(0, CAMPAIGN_NOISE)
        offer = _offer(draw)
        message = _message(draw, offer, brand, product)
        likely = probability(offer, message, appeal + draw.gauss(0, ROW_NOISE))
        sends = draw.randint(200, 400)
        yield Row(
            campaign=f"c{i // MESSAGES_OF_A_CAMPAIGN:05}",
            message=message,
            sends=sends,
            conversions=sum(draw.random() < likely for _ in range(sends)),
            converted=int(draw.random() < likely),
            probability=round(likely, 6),
        )


def _offer(draw: random.Random) -> Offer:
    kind = draw.choice(("percent", "amount", "free_shipping", "bogo", "none"))
    return Offer(
        percent=draw.choice((10, 15, 20, 25, 30, 40, 50)) if kind == "percent" else 0,
        amount=draw.choice((5, 10, 15, 20, 30)) if kind == "amount" else 0,
        free_shipping=kind == "free_shipping",
        bogo=kind == "bogo",
        urgency=draw.random() < 0.4,
        personal=draw.random() < 0.4,
        capitals=draw.random() < 0.2,
        opt_out=draw.random() < 0.6,
    )


def _message(draw: random.Random, offer: Offer, brand: str, product: str) -> str:
    if offer.percent:
        deal = f"{offer.percent}% off all {product}."
    elif offer.amount:
        deal = f"${offer.amount} off your next {product}."
    elif offer.free_shipping:
        deal = f"Free shipping on {product}."
    elif offer.bogo:
        deal = f"Buy one, get one free: {product}."
    else:
        deal = f"Our new {product} are here."
    parts = [
        f"{brand}:",
        f"{draw.choice(_NAMES)}, this is for you." if offer.personal else "",
        deal,
        draw.choice(_FILLER) if draw.random() < 0.4 else "",
        draw.choice(_URGENT if offer.urgency else _CALM),
        _OPT_OUT if offer.opt_out else "",
    ]
    text = " ".join(filter(None, parts))
    return text.upper() if offer.capitals else text
