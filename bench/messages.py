"""What rules and a model of the chat's menu make of marketing messages: how well features are found, and at
what cost, on the gold set of train/tasks/sms_gold.py; and how likely the model says that they sell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from bench.cells import Cell
from bench.comparison import Measure, Panel, Section, given, table_of
from core.command import ROOT
from core.sms import FIELDS, Features
from core.sms_rules import extract
from train.tasks.sms_generator import Row
from train.tasks.sms_gold import Extractor, compared, found_of, gold
from train.tasks.sms_truth import judged

if TYPE_CHECKING:
    from chat.model_host import Host
    from chat.reply import Sessions

GOLD = 200  # messages
ALL = "rules, all messages"
DRAWN = {
    name: {"color": colour, "marker": marker}
    for name, colour, marker in (
        (ALL, "#9db7d5", "o"),
        ("rules", "#4f7fb8", "o"),
        ("model", "#b8420c", "s"),
        ("hybrid", "#2f7d4f", "^"),
    )
}
SIDES = ("precision", "recall")
COSTS = {
    "messages": ("messages", "{:.0f}"),
    "seconds": ("seconds a message", "{:.2g}"),
    "unfilled": ("schema not filled", "{:.0f}"),
    "asked": ("messages that the model was asked", "{:.0f}"),
}


def host_of(engine: str, model: str) -> Host:
    """The chat's models, of which nothing is loaded yet; the first is `model`, or the menu's where it is "".
    Ends the program where there are none."""
    from chat import cli  # where only arms are trained, the chat's libraries needn't be there

    options = cli.Settings(engine, model, None, cli.MAX_PORT, [], titles=False)
    return cli.make_host(options, ROOT / "models.json")


def by_rules() -> dict[str, Any]:
    """What the rules find in the gold set: a cell."""
    messages, truth = zip(*gold(GOLD, 0), strict=True)
    began = time.perf_counter()
    found, unsure = zip(*map(extract, messages), strict=True)
    seconds = (time.perf_counter() - began) / len(messages)
    read = {name: [each.model_dump() for each in of] for name, of in (("truth", truth), ("found", found))}
    return {"seconds": seconds} | read | {"unsure": [sorted(doubts) for doubts in unsure]}


def asked(host: Host, tests: Mapping[int, Callable[[], Sequence[Row]]], most: int) -> Iterator[Cell]:
    """Cells of what the menu's first model says: `chat`/seed, the likelihoods of the seed's tests, and
    `asked`/number, its reading of `most` messages of the gold set."""
    model = host.default

    @cache
    def sessions() -> Sessions:
        from chat.reply import Sessions  # late: an arm's memory is that of the process, which may be ours
        from chat.sms import ask_features

        made = Sessions(host)
        ask_features(made, model, "Hello.")  # waits for the model: that isn't a message's cost
        return made

    def likelihoods(seed: int) -> dict[str, Any]:
        from chat.sms import likelihood

        asked, rows = sessions(), tests[seed]()
        began = time.perf_counter()
        likely = [likelihood(asked, model, row.message) for row in rows]
        return {"seconds": (time.perf_counter() - began) / len(rows)} | judged(rows, likely)

    def features(message: str) -> dict[str, Any]:
        from chat.sms import ask_features

        reply = ask_features(sessions(), model, message)
        return asdict(reply) | {"features": reply.features and reply.features.model_dump()}

    for seed in tests:
        yield Cell(f"chat/{seed}", partial(likelihoods, seed), alone=True)
    for number, (message, _) in enumerate(gold(GOLD, 0)[:most]):
        yield Cell(f"asked/{number}", partial(features, message), alone=True)


def extractors(rules: Mapping[str, Any], replies: Mapping[int, Mapping[str, Any]]) -> dict[str, Extractor]:
    """Rules in all messages, and rules, model and hybrid in those that the model read: of the cells."""
    truth, found = ([Features(**each) for each in rules[name]] for name in ("truth", "found"))
    made = {ALL: Extractor(found_of(truth, found), rules["seconds"], len(truth))}
    if not replies:
        return made
    return made | compared(
        [truth[number] for number in replies],
        [found[number] for number in replies],
        [rules["unsure"][number] for number in replies],
        [reply["features"] and Features(**reply["features"]) for reply in replies.values()],
        (rules["seconds"], [reply["seconds"] for reply in replies.values()]),
    )


def section(found: Mapping[str, Extractor]) -> Section:
    """Precision and recall of each field by extractor, and what a message cost."""
    sides = [_side(found, side, "field") for side in SIDES]
    costs = [
        Measure(said, "", {"": {who: [getattr(each, name)] for who, each in found.items()}}, form)
        for name, (said, form) in COSTS.items()
    ]
    same = {who: each for who, each in found.items() if who != ALL} or found
    counts = {each.messages for each in same.values()}
    drawn = [_side(same, side, f"field, in {max(counts, default=0)} messages") for side in SIDES]
    panels = [Panel(side, limits=(-0.03, 1.03)) for side in drawn]
    return Section([table_of([*sides, *costs], found)], "Features found in synthetic messages", panels)


def _side(found: Mapping[str, Extractor], side: str, x: str) -> Measure:
    rows = {
        field.replace("_", " "): {
            who: given([each.fields[field][SIDES.index(side)]]) for who, each in found.items()
        }
        for field in FIELDS
    }
    return Measure(side, x, rows, "{:.2f}")
