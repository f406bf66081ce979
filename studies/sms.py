"""Do marketing messages sell, and can a language model tell? python studies/sms.py

    python studies/sms.py                          SmolLM2, two cores
    python studies/sms.py --recipe mistral-7b-sms --train 1500 --test 300 --asked 200    on a GPU

All messages are synthetic, and so is what they sold. Each cell is kept in results.json as soon as it is
measured: the same command goes on where it was.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import ROOT, Parser, missing, run

try:
    import torch

    from chat import cli
    from chat.model_host import Host
    from chat.reply import Sessions
    from chat.sms import ask_features, likelihood
    from chat.sms_rules import extract
    from core.errors import ChatError
    from core.machine import thread_count
    from studies.results import Results
    from studies.sms_arms import BITS, Arm, Row, baselines, recipe_of, scores, split, table, tuned
    from studies.sms_gold import gold
    from studies.sms_plots import write_report
    from train.tasks.make_sms import main as make_csv
except ModuleNotFoundError as error:
    sys.exit(missing(error))

SCRIPT = "studies/sms.py"
VERSION = 1  # another one when a figure comes to mean something else
SEEDS = (1, 2, 3)
GOLD = 200
MAXIMA = {"train": 1500, "test": 300}


class Study:
    """What is to be measured, and what is already."""

    def __init__(self, out: Path, settings: dict[str, Any], host: Host | None) -> None:
        """`host` has the model that is asked through the chat, as the first of its menu; None leaves out
        what needs one. Raises ChatError for results of another version or of other settings in `out`."""
        self.out, self.settings = out, settings
        self.host, self.sessions = host, Sessions(host) if host else None
        self.results = Results(out, VERSION, settings)
        self.rows = table(settings["rows"])

    def sides(self, seed: int) -> tuple[list[int], list[int], list[int]]:
        """Places of all rows that may be trained on, of those the models are, and of the tests."""
        train, tests = split(self.rows, seed)
        return train, train[: self.settings["train"]], tests[: self.settings["test"]]

    def at(self, places: list[int]) -> list[Row]:
        return [self.rows[place] for place in places]

    def do(self) -> None:
        """Measure what isn't there. Raises ChatError, or KeyboardInterrupt."""
        if not self.results.done("made"):
            self.results.put("made", _made())
        self._cell("rules", self._rules)
        for seed in SEEDS:
            self._cell(f"baselines/{seed}", partial(self._baselines, seed))
        for seed in SEEDS:
            for arm in (Arm(bits, checkpointing) for bits in BITS for checkpointing in (False, True)):
                if not arm.checkpointing or seed in SEEDS[: self.settings["checkpointed_seeds"]]:
                    self._cell(f"tuned/{arm.name}/{seed}", partial(self._tuned, arm, seed))
        if self.sessions:  # last: its memory would count as that of the arms
            for seed in SEEDS:
                self._cell(f"chat/{seed}", partial(self._chat, seed))
            for number in range(self.settings["asked"]):
                self._cell(f"asked/{number}", partial(self._asked, number))

    def _cell(self, key: str, measure: Callable[[], Any]) -> None:
        if self.results.done(key):
            return
        began = time.monotonic()
        self.results.put(key, measure())
        print(f"{key}: {time.monotonic() - began:.1f} s", flush=True)

    def _rules(self) -> dict[str, Any]:
        messages = gold(GOLD, 0)
        began = time.perf_counter()
        found = [extract(message) for message, _ in messages]
        return {
            "seconds": (time.perf_counter() - began) / len(messages),
            "truth": [truth.model_dump() for _, truth in messages],
            "found": [features.model_dump() for features, _ in found],
            "unsure": [sorted(unsure) for _, unsure in found],
        }

    def _asked(self, number: int) -> dict[str, Any]:
        assert self.sessions
        assert self.host
        if not self.results.done("asked/0"):  # the first waits for the model: that isn't its cost
            likelihood(self.sessions, self.host.default, "Hello.")
        reply = ask_features(self.sessions, self.host.default, gold(GOLD, 0)[number][0])
        return asdict(reply) | {"features": reply.features and reply.features.model_dump()}

    def _baselines(self, seed: int) -> dict[str, Any]:
        everything, few, tests = map(self.at, self.sides(seed))
        made = {f"{name}, {len(few)} rows": found for name, found in baselines(few, tests).items()}
        made |= {f"{name}, {len(everything)} rows": f for name, f in baselines(everything, tests).items()}
        made["the generator's truth"] = [row.probability for row in tests]
        return {name: scores(tests, found) for name, found in made.items()}

    def _chat(self, seed: int) -> dict[str, Any]:
        assert self.sessions
        assert self.host
        tests = self.at(self.sides(seed)[2])
        began = time.perf_counter()
        likely = [likelihood(self.sessions, self.host.default, row.message) for row in tests]
        seconds = (time.perf_counter() - began) / len(tests)
        told = [row.converted for row in tests]
        return {"likely": likely, "converted": told, "seconds": seconds} | scores(tests, likely)

    def _tuned(self, arm: Arm, seed: int) -> dict[str, Any]:
        csv = self.out / "sms.csv"
        if not csv.exists() and make_csv(["--out", str(csv), "--rows", str(self.settings["rows"])]):
            raise ChatError(f"{csv} could not be written; see above")
        recipe = recipe_of(self.settings["recipe"], csv, arm, seed, self.settings["epochs"])
        _, train, tests = self.sides(seed)
        told = [self.rows[place].converted for place in tests]
        folder = self.out / "run" / f"{arm.bits}-{arm.checkpointing}-{seed}"
        return tuned(recipe, self.rows, train, tests, folder) | {"converted": told}


def _made() -> dict[str, str]:
    """When and on what, for the report."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{thread_count()} CPU core(s)"
    command = shlex.join(["python", SCRIPT, *sys.argv[1:]])
    return {"device": device, "date": date.today().isoformat(), "command": command, "torch": version("torch")}


def read(argv: list[str]) -> Any:
    """The options; a wrong one ends the program with one line and exit code 2."""
    parser = Parser(prog=f"python {SCRIPT}", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "outputs" / "studies" / "sms", help="the folder of the results")
    add("--recipe", default="smollm2-quotes", help="base, adapter and rates; the data are the study's")
    add("--train", type=int, default=32, help="rows that a model is tuned on")
    add("--test", type=int, default=24, help="rows of other campaigns that it is tested on")
    add("--asked", type=int, default=20, help=f"of the {GOLD} gold messages, those the model reads")
    add("--epochs", type=float, default=1.0)
    add("--checkpointed-seeds", type=int, default=1, help="seeds that are also tuned with checkpointing")
    add("--model", default="", help="a name of models.json or a GGUF file; otherwise the menu's first")
    add("--engine", default="in-process", help="as app.py has it; also URL of an OpenAI-compatible engine")
    given = parser.parse_args(argv)
    for name, most in (*MAXIMA.items(), ("asked", GOLD), ("checkpointed_seeds", len(SEEDS))):
        least = 0 if name in ("asked", "checkpointed_seeds") else 8
        if not least <= getattr(given, name) <= most:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} {getattr(given, name)} is not from {least} to {most:,}")
    return given


def main(argv: list[str]) -> int:
    """Measure, and write the report; return the exit code."""
    given = read(argv)

    def measure() -> int:
        options = cli.Settings(given.engine, given.model, None, cli.MAX_PORT, [], titles=False)
        host = cli.make_host(options, ROOT / "models.json")
        try:
            names = ("recipe", "train", "test", "asked", "epochs", "checkpointed_seeds")
            settings = {name: getattr(given, name) for name in names} | {"rows": 2000, "model": host.default}
            study = Study(given.out, settings, host)
            study.do()
            print(f"{write_report(study.results.content, given.out)} is written")
        finally:
            host.close()
        return 0

    return run(measure, "Stopped; the same command goes on where it was.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
