"""Make synthetic marketing SMS whose conversion follows a known function: train/tasks/make_sms.py

Nothing of it is real: no brand, no message, no customer. What is drawn, and how it sells, is all in this
file, so that a model can be judged by how much of the known function it finds. The columns are those of
`Row`. Beside the CSV it writes a card, `.md`, that says so too.
"""

from __future__ import annotations

import csv
import io
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core.command import Parser, run
from core.errors import TrainError
from core.files import write_whole

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


def card(count: int, seed: int, table: list[Row]) -> str:
    """The data's card, in Markdown: that it is synthetic, how it was made, the best scores there can be."""
    from train.tasks.sms import expected_figures, figures  # scikit-learn takes a second

    truth, true = [row.converted for row in table], [row.probability for row in table]
    best = figures(truth, true) | expected_figures(true, true)
    weights = "".join(f"| {name} | {weight:+} |\n" for name, weight in WEIGHTS.items())
    return (
        "# Synthetic marketing SMS\n\n"
        "This data is synthetic: brands, messages, customers and conversions are made up. A score on it\n"
        "says how much of a known function a model finds, nothing about real campaigns.\n\n"
        f"Made by `python train/tasks/make_sms.py --rows {count} --seed {seed}`. Rate of `converted`:"
        f" {sum(truth) / len(truth):.3f}.\n\n"
        f"Log-odds of a conversion: {INTERCEPT}, and for each of\n\n"
        f"| feature | weight |\n|---|---|\n{weights}\n"
        f"and normal noise of {CAMPAIGN_NOISE} for a campaign and {ROW_NOISE} for a row.\n\n"
        "The true probabilities themselves score, on all rows (expected: over many draws of who buys): "
        + ", ".join(f"{name} {value:.4f}" for name, value in best.items())
        + f".\n{_baselines(table, seed)}"
    )


def _baselines(table: list[Row], seed: int) -> str:
    """What baselines find of it on campaigns that they didn't see; "" where there are too few."""
    from train.card import table as table_of
    from train.tasks.sms_truth import of_baselines, share_reached, split

    train, tests = split(table, seed)
    if not train or not tests:
        return ""
    found = of_baselines(tests, train)
    shares = {name: share_reached(scores, found) for name, scores in found.items()}
    rows = [
        (name, f"{scores['expected_log_loss']:.4f}", "" if shares[name] is None else f"{shares[name]:.2f}")
        for name, scores in found.items()
    ]
    return (
        f"\nOn {len(tests)} rows of campaigns apart, what needs no language model finds of that truth "
        "(0 is the mean rate, 1 the truth):\n\n"
        f"{table_of(('', 'expected log-loss, nats', 'share of truth reached'), rows)}\n"
    )


def main(argv: list[str]) -> int:
    """Write the CSV and its card; return the exit code."""
    parser = Parser(prog="python train/tasks/make_sms.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)

    def generate() -> int:
        if given.out.suffix != ".csv" or given.rows < 1:
            raise TrainError(f"give --out a name ending in .csv ({str(given.out)!r}) and --rows at least 1")
        if given.out.exists():
            raise TrainError(f"{given.out} is there already; remove it, or give --out another name")
        table = list(rows(given.rows, given.seed))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [column.name for column in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, table))
        made = given.out.with_suffix(".md")
        write_whole(made, card(given.rows, given.seed, table))
        write_whole(given.out, text.getvalue())
        print(f"{given.out}: {given.rows:,} synthetic rows; {made} says how they were made")
        print("In the recipe: data: {path: " + given.out.name + ", task: sms, license: synthetic}")
        return 0

    return run(generate, "Stopped; no file was written.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
