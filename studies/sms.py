"""Do marketing messages sell, and can a language model tell? python studies/sms.py

    python studies/sms.py                     SmolLM2, two cores, some 6 minutes
    python studies/sms.py --only tuned --train 1500 --test 300 --epochs 3 --workers 4    on a GPU
    python studies/sms.py --only chat --out FOLDER    adds what needs a model of the chat, on any machine
    python studies/sms.py --page FOLDER       what FOLDER/results.json says, as docs/studies/sms.md

All messages are synthetic, and so is what they sold. Each cell is kept in results.json as soon as it is
measured: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import ROOT, Parser, missing, run

try:
    import torch

    from bench import full_size
    from bench.cells import FILE, Cell, Results, Runner, read_results
    from bench.comparison import SEEDS
    from core.errors import ChatError
    from core.files import write_whole
    from core.machine import thread_count
    from core.sms_rules import extract
    from studies.sms_arms import BITS, CSV, SECTIONS, Arm, Plan, baselines_of, scores, split, tune
    from studies.sms_plots import write_report
    from studies.sms_report import best_rate
    from train.tasks.make_sms import main as make_csv
    from train.tasks.make_sms import rows
    from train.tasks.sms_gold import gold
except ModuleNotFoundError as error:
    sys.exit(missing(error))

if TYPE_CHECKING:
    from chat.model_host import Host

SCRIPT = "studies/sms.py"
VERSION = 2  # another one when a figure comes to mean something else
GOLD = 200
MAXIMA = {"train": 1500, "test": 300}
FULL_SIZE, FULL_SIZE_STEPS = "mistral-7b-sms", 12  # a recipe whose memory and speed are measured on a GPU


class Study:
    """What is to be measured, and what is already."""

    def __init__(self, out: Path, plan: Plan) -> None:
        """Raises ChatError for results of another version or of other settings in `out`."""
        self.out, self.plan = out, plan
        settings = json.loads(json.dumps(asdict(plan)))  # as it is read again
        self.results = Results(out, VERSION, settings)
        self.rows = list(rows(plan.rows, 0))

    def plain(self) -> list[Cell]:
        """What needs no language model."""
        baselined = [Cell(f"baselines/{seed}", partial(self._baselines, seed), alone=True) for seed in SEEDS]
        return [Cell("rules", _rules, alone=True), *baselined]

    def looks(self) -> list[Cell]:
        """The rates beside each other; nothing where there is no choice."""
        rates = self.plan.rates if len(self.plan.rates) > 1 else ()
        return [self._cell(f"rate/{rate:g}", Arm(16, False), SEEDS[0], rate, True) for rate in rates]

    def tuned(self) -> list[Cell]:
        """Each arm and seed, at the best rate. The first seed's are timed, and are alone for that."""
        rate, made = best_rate(self.results.content), []
        for seed in SEEDS:
            for arm in (Arm(bits, checkpointing) for bits in BITS for checkpointing in (False, True)):
                if not arm.checkpointing or seed in SEEDS[: self.plan.checkpointed_seeds]:
                    made.append(self._cell(f"tuned/{arm.name}/{seed}", arm, seed, rate))
        return made

    def _cell(self, key: str, arm: Arm, seed: int, rate: float, looking: bool = False) -> Cell:
        work = partial(tune, self.plan, self.out, arm, seed, rate, looking)
        return Cell(key, work, alone=seed == SEEDS[0] and not looking)

    def _baselines(self, seed: int) -> dict[str, Any]:
        everything = [self.rows[place] for place in split(self.rows, seed)[0]]
        few, tests = ([self.rows[place] for place in part] for part in self.plan.sides(self.rows, seed))
        made = {f"{name}, {len(few)} rows": found for name, found in baselines_of(few, tests).items()}
        made |= {f"{name}, {len(everything)} rows": f for name, f in baselines_of(everything, tests).items()}
        made["the generator's truth"] = [row.probability for row in tests]
        return {name: scores(tests, found) for name, found in made.items()}

    def chat(self, host: Host, asked: int) -> list[Cell]:
        """What the first model of the chat's menu says. Raises ChatError where another one has begun."""
        from chat.reply import Sessions
        from chat.sms import ask_features, likelihood

        sessions, model = Sessions(host), host.default
        if (before := self.results.content["cells"].get("chat_made", {}).get("model", model)) != model:
            raise ChatError(
                f"{self.results.path} has replies of {before}, and this is {model}: a table of both means "
                f"nothing. Choose --model {shlex.quote(before)}, or another folder: --out FOLDER"
            )

        def likelihoods(seed: int) -> dict[str, Any]:
            tests = [self.rows[place] for place in self.plan.sides(self.rows, seed)[1]]
            began = time.perf_counter()
            likely = [likelihood(sessions, model, row.message) for row in tests]
            seconds = (time.perf_counter() - began) / len(tests)
            told = [row.converted for row in tests]
            return {"likely": likely, "converted": told, "seconds": seconds} | scores(tests, likely)

        def features(message: str) -> dict[str, Any]:
            reply = ask_features(sessions, model, message)
            return asdict(reply) | {"features": reply.features and reply.features.model_dump()}

        features("Hello.")  # the first waits for the model: that isn't a message's cost
        if not self.results.done("chat_made"):
            self.results.put("chat_made", _made() | {"model": model})
        messages = [message for message, _ in gold(GOLD, 0)[:asked]]
        cells = [Cell(f"chat/{seed}", partial(likelihoods, seed), alone=True) for seed in SEEDS]
        read = [Cell(f"asked/{n}", partial(features, text), alone=True) for n, text in enumerate(messages)]
        return cells + read

    def measure(self, runner: Runner, full: bool) -> None:
        """Do what is to be trained. Raises ChatError."""
        here = _made()
        begun = self.results.content["cells"].get("made", here)["device"]
        if begun != here["device"]:
            raise ChatError(
                f"{self.results.path} was begun on {begun}, and this is {here['device']}: memory and speed "
                "of both in a table mean nothing. Go on there, say --only chat, or give another --out FOLDER"
            )
        if not self.results.done("made"):
            self.results.put("made", here)
        csv = self.out / CSV
        if not csv.exists() and make_csv(["--out", str(csv), "--rows", str(self.plan.rows)]):
            raise ChatError(f"{csv} could not be written; see above")
        runner.do(self.looks())
        if all(self.results.done(cell.key) for cell in self.looks()):
            runner.do(self.tuned())
        if full:
            runner.do(_full_size())


def _full_size() -> list[Cell]:
    """The recipe for Mistral-7B, as each arm has it."""
    made = []
    for arm in (Arm(bits, checkpointing) for bits in BITS for checkpointing in (False, True)):
        values = {
            "BitsAndBytesConfig": SECTIONS.get(arm.bits),
            "memory": "lean" if arm.checkpointing else "fast",
        }
        work = partial(full_size.measure, FULL_SIZE, values, FULL_SIZE_STEPS)
        made.append(Cell(f"full/{arm.name}", work, alone=True))
    return made


def _rules() -> dict[str, Any]:
    messages = gold(GOLD, 0)
    began = time.perf_counter()
    found = [extract(message) for message, _ in messages]
    return {
        "seconds": (time.perf_counter() - began) / len(messages),
        "truth": [truth.model_dump() for _, truth in messages],
        "found": [features.model_dump() for features, _ in found],
        "unsure": [sorted(unsure) for _, unsure in found],
    }


def _made() -> dict[str, str]:
    """When and on what, for the report."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{thread_count()} CPU core(s)"
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = shlex.join(["python", SCRIPT, *words])  # whose folders are of no interest elsewhere
    return {"device": device, "date": date.today().isoformat(), "command": command, "torch": version("torch")}


def read(argv: list[str]) -> argparse.Namespace:
    """The options; a wrong one ends the program with one line and exit code 2."""
    parser = Parser(prog=f"python {SCRIPT}", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "outputs" / "studies" / "sms", help="the folder of the results")
    add("--recipe", default="smollm2-quotes", help="base and adapter; the data are the study's")
    add("--train", type=int, default=32, help="rows that a model is tuned on")
    add("--test", type=int, default=24, help="rows of other campaigns that it is tested on")
    add("--asked", type=int, default=20, help=f"of the {GOLD} gold messages, those the model reads")
    add("--epochs", type=float, default=1.0)
    add("--batch", type=int, default=1, help="blocks of a step")
    add("--rates", type=float, nargs="+", default=[2e-4], help="learning rates, of which the best is taken")
    add("--checkpointed-seeds", type=int, default=1, help="seeds that are also tuned with checkpointing")
    add("--only", choices=("tuned", "chat"), help="what is trained, or what needs a model of the chat")
    add("--full-size", action="store_true", help=f"memory and speed of {FULL_SIZE} too (needs CUDA)")
    add("--workers", type=int, default=1, help="processes that tune side by side, on a GPU")
    add("--minutes", type=float, default=math.inf, help="tune nothing that would end later")
    add("--model", default="", help="a name of models.json or a GGUF file; otherwise the menu's first")
    add("--engine", default="in-process", help="as app.py has it; also URL of an OpenAI-compatible engine")
    add("--page", type=Path, metavar="FOLDER", help="write docs/studies of its results")
    given = parser.parse_args(argv)
    for name, most in (*MAXIMA.items(), ("asked", GOLD), ("checkpointed_seeds", len(SEEDS))):
        least = 0 if name in ("asked", "checkpointed_seeds") else 8
        if not least <= getattr(given, name) <= most:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} {getattr(given, name)} is not from {least} to {most:,}")
    if wrong := [rate for rate in given.rates if not 0 < rate < 1]:
        parser.error(f"--rates {wrong[0]} is not above 0 and below 1")
    if given.full_size and not torch.cuda.is_available():
        parser.error("--full-size: PyTorch sees no CUDA GPU here; leave it out")
    return given


def make_host(given: argparse.Namespace) -> Host:
    """The chat's models, of which nothing is loaded yet. Ends the program where there are none."""
    from chat import cli

    options = cli.Settings(given.engine, given.model, None, cli.MAX_PORT, [], titles=False)
    return cli.make_host(options, ROOT / "models.json")


def publish(folder: Path, pages: Path) -> int:
    """Write the page of `folder`'s results, its plots and its JSON into `pages`. Raises ChatError."""
    content = read_results(folder, VERSION)
    (pages / "sms").mkdir(parents=True, exist_ok=True)
    write_whole(pages / "sms" / "results.json", json.dumps(content, ensure_ascii=False) + "\n")
    print(f"{write_report(content, pages, 'sms.md', 'sms/')} is written")
    return 0


def main(argv: list[str]) -> int:
    """Measure, and write the report; return the exit code."""
    given = read(argv)
    until = time.monotonic() + 60 * given.minutes

    def measure() -> int:
        if given.page:
            return publish(given.page, ROOT / "docs" / "studies")
        sizes = (given.recipe, given.train, given.test, given.epochs, given.batch, tuple(given.rates))
        plan = Plan(*sizes, given.checkpointed_seeds)
        if given.only == "chat" and (given.out / FILE).exists():  # with it, whatever it was begun with
            plan = Plan(**read_results(given.out, VERSION)["settings"])
        study = Study(given.out, plan)
        share = partial(torch.set_num_threads, max(1, thread_count() // given.workers))
        with (
            Runner(study.results, until, given.workers, share) as runner,
            nullcontext() if given.only == "tuned" else closing(make_host(given)) as host,
        ):
            runner.do(study.plain())
            if given.only != "chat":
                study.measure(runner, given.full_size)
            if host:  # last: its memory would count as that of the arms
                runner.do(study.chat(host, given.asked))
        print(f"{write_report(study.results.content, given.out)} is written")
        return 1 if runner.failed else 0

    return run(measure, "Stopped; the same command goes on where it was.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
