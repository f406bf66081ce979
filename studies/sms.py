"""Do marketing messages sell, and can a language model tell? python studies/sms.py

    python studies/sms.py                     SmolLM2, two cores, some 5 minutes
    python studies/sms.py --only tuned --train 1500 --test 300 --epochs 3 --workers 4    on a GPU
    python studies/sms.py --only chat --out FOLDER    adds what needs a model of the chat, on any machine
    python studies/sms.py --page FOLDER       what FOLDER/results.json says, as docs/studies/sms.md

All messages are synthetic, and so is what they sold. Each cell is kept in results.json as soon as it is
measured: the same command goes on where it was.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import importing

with importing():
    import torch
    import yaml

    from bench import full_size, messages
    from bench.cells import FILE, Cell, Results, reading
    from bench.comparison import SEEDS
    from bench.study import Study, between
    from bench.tuned import tuned
    from core.sms import LABELS
    from studies.sms_page import best_rate, calibration_json, draw, page
    from train.recipe import Recipe, changed, load_recipe
    from train.tasks.sms import example_of
    from train.tasks.sms_generator import Row, rows
    from train.tasks.sms_truth import judged, of_baselines, split

if TYPE_CHECKING:
    from chat.model_host import Host

STUDY = Study("sms", 2, page, draw, calibration_json)
PLAN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
ARMS: dict[str, dict[str, Any]] = PLAN["arms"]


@dataclass(frozen=True)
class Plan:
    """What a model is tuned on, and how; numbers of rows."""

    recipe: str
    train: int
    test: int
    epochs: float
    batch: int  # blocks of a step
    rates: list[float]  # of which the best is taken, by campaigns that aren't tested
    checkpointed_seeds: int
    rows: int = 2000

    def all_rows(self, seed: int) -> tuple[list[Row], list[Row]]:
        """The seed's rows that may be trained on, and those that may be tested on."""
        return split(list(rows(self.rows, 0)), seed)

    def sides(self, seed: int, looking: bool = False) -> tuple[list[Row], list[Row]]:
        """The rows to train on, and to test on; `looking`: both out of those to train on."""
        train, tests = self.all_rows(seed)
        train, tests = split(train, seed) if looking else (train, tests)
        return train[: self.train], tests[: self.test]

    def recipe_of(self, arm: str, seed: int, rate: float) -> Recipe:
        """The recipe as this arm has it. Raises TrainError."""
        values = PLAN["recipe"] | ARMS[arm]
        values |= {"SFTConfig.seed": seed, "SFTConfig.learning_rate": rate}
        values |= {"SFTConfig.num_train_epochs": self.epochs}
        values |= {"SFTConfig.per_device_train_batch_size": self.batch}
        return changed(load_recipe(self.recipe), values, self.recipe)


def tune(plan: Plan, out: Path, arm: str, seed: int, rate: float, looking: bool = False) -> dict[str, Any]:
    """Tune the arm in a folder in `out` and ask it the seed's tests; `looking` for a rate, campaigns that are
    neither trained on nor among the tests. Raises TrainError."""
    train, tests = plan.sides(seed, looking)
    folder = out / "run" / f"{arm}-{seed}-{rate:g}-{looking}"
    known, asked = (
        [example_of(row.message, LABELS[0] if row.converted else LABELS[1], row.campaign) for row in part]
        for part in (train, tests)
    )
    with tuned(plan.recipe_of(arm, seed, rate), folder, known) as (session, told):
        likely = session.label_probabilities([example.messages[:-1] for example in asked], LABELS)
    return {"rate": rate} | told | judged(tests, [yes for yes, _ in likely])


def baselines(plan: Plan, seed: int) -> dict[str, dict[str, float]]:
    """Those that saw as many rows as the arms, and those that saw all."""
    few, tests = plan.sides(seed)
    return of_baselines(tests, few, plan.all_rows(seed)[0])


def lines(plan: Plan, results: Results, given: Namespace, host: Host | None) -> Iterator[list[Cell]]:
    """What is to be done, in this order. Each arm's first seed is timed, and alone for that."""
    work = partial(tune, plan, given.out)
    yield [
        Cell("rules", messages.by_rules, alone=True),
        *(Cell(f"baselines/{seed}", partial(baselines, plan, seed), alone=True) for seed in SEEDS),
    ]
    if given.only != "chat":
        rates = plan.rates if len(plan.rates) > 1 else []
        looks = [Cell(f"rate/{r:g}", partial(work, "16 bit", SEEDS[0], r, looking=True)) for r in rates]
        yield looks
        if all(results.done(look.key) for look in looks):
            rate = best_rate(results.content)
            yield [
                Cell(f"tuned/{arm}/{seed}", partial(work, arm, seed, rate), alone=seed == SEEDS[0])
                for seed, arm in product(SEEDS, ARMS)
                if "checkpointing" not in arm or seed in SEEDS[: plan.checkpointed_seeds]
            ]
        sized = partial(full_size.measure, **PLAN["full_size"])
        for arm, values in ARMS.items() if given.full_size else ():
            yield [Cell(f"full/{arm}", partial(sized, values=values), alone=True)]
    if host:  # last: its memory would count as that of the arms
        tests = {seed: lambda seed=seed: plan.sides(seed)[1] for seed in SEEDS}
        yield list(messages.asked(host, tests, given.asked))


def read(argv: list[str]) -> Namespace:
    """The options; a wrong one ends the program with one line and exit code 2."""
    parser = STUDY.parser(__doc__)
    add = parser.add_argument
    add("--recipe", default="smollm2-quotes", help="base and adapter; the data are the study's")
    add("--train", type=between(8, 1500), default=32, help="rows that a model is tuned on")
    add("--test", type=between(8, 300), default=24, help="rows of other campaigns that it is tested on")
    add("--asked", type=between(0, messages.GOLD), default=20, help="gold messages that the model reads")
    add("--epochs", type=between(0.01, 100, float), default=1.0)
    add("--batch", type=between(1, 64), default=1, help="blocks of a step")
    add("--rates", type=between(1e-8, 1, float), nargs="+", default=[2e-4], help="the best is taken")
    add("--checkpointed-seeds", type=between(0, len(SEEDS)), default=1, help="tuned with checkpointing too")
    add("--only", choices=("tuned", "chat"), help="what is trained, or what needs a model of the chat")
    add("--full-size", action="store_true", help="memory and speed of Mistral-7B too (needs CUDA)")
    add("--model", default="", help="a name of models.json or a GGUF file; otherwise the menu's first")
    add("--engine", default="in-process", help="as app.py has it; also URL of an OpenAI-compatible engine")
    given = parser.parse_args(argv)
    if given.full_size and not torch.cuda.is_available():
        parser.error("--full-size: PyTorch sees no CUDA GPU here; leave it out")
    return given


def measure(given: Namespace, argv: list[str], until: float) -> tuple[Results, int, int]:
    """Do what is left, as Study.measure tells. Raises ChatError."""
    sizes = (given.recipe, given.train, given.test, given.epochs, given.batch, given.rates)
    plan = Plan(*sizes, given.checkpointed_seeds)
    if given.only == "chat" and (given.out / FILE).exists():  # with it, whatever it was begun with
        with reading(given.out / FILE):
            plan = Plan(**STUDY.read(given.out)["settings"])
            plan.sides(SEEDS[0])
    for arm in ARMS if given.only != "chat" else ():
        plan.recipe_of(arm, SEEDS[0], plan.rates[0])  # a wrong one is told of before anything is measured
    results, about = STUDY.results(given.out, asdict(plan)), STUDY.about(argv, ["torch"])
    here = {name: about[name] for name in ("date", "command")} | about["versions"]
    here["device"] = f"{about['cores']} CPU core(s)" if about["device"] == "CPU" else about["device"]
    models = None if given.only == "tuned" else messages.host_of(given.engine, given.model)
    with closing(models) if models else nullcontext() as host:
        if given.only != "chat":
            results.begin("made", here, "device", "Go on there, say --only chat")
        if host:
            results.begin("chat_made", here | {"model": host.default}, "model", "Choose --model {}")
        return STUDY.measure(results, partial(lines, plan, results, given, host), until, given.workers)


def main(argv: list[str]) -> int:
    """Measure, and write the report; return the exit code."""
    given = read(argv)
    return STUDY.main(given, argv, partial(measure, given, argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
