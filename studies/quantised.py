"""What does a quantised base do to training, and to what comes out? One base as GPTQ, NF4, int8 and bf16.

    python studies/quantised.py --quick              two cores, some 9 minutes
    python studies/quantised.py --device cuda        all of it; with --minutes 8 as much of it as fits
    python studies/quantised.py --processor FOLDER   adds to its results how the base writes on a processor
    python studies/quantised.py --page FOLDER        makes docs/studies/quantised.md of its results

What is measured is in studies/quantised.yaml. Each cell is kept in results.json as soon as it is measured:
the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import importing

with importing():
    import torch

    from bench import full_size, inference
    from bench.bases import add_base, base_of
    from bench.cells import FILE, Cell, Results, read_results, reading
    from bench.comparison import SEEDS
    from bench.inference_report import ABOUT, processor_now
    from bench.study import Study
    from bench.task_runs import tuned, untuned
    from bench.task_sets import content_of, load_tasks
    from studies.quantised_report import DATA, DRAWN, sections
    from train.base import find_base, fingerprint
    from train.recipe import Recipe, changed, full_path, parse, read_yaml
    from train.to_gptq import quantise_on_text

STUDY = Study.of("quantised", 2, sections, DRAWN)
PLAN = read_yaml(Path(__file__).with_suffix(".yaml"))
ARMS: dict[str, dict[str, Any]] = PLAN["arms"]
CALIBRATION = DATA / "calibration.txt"


class Plan:
    """What is to be done with a base, by the settings of its results; and what is done already."""

    def __init__(self, base: Path, results: Results, device: str, gptq: str = "gptq") -> None:
        """`gptq`: the folder beside the results where GPTQ's base is, or will be."""
        self.base, self.results, self.device = base, results, device
        self.settings, self.out = results.content["settings"], results.path.parent
        self.sizes, self.gptq = self.settings["sizes"], self.out / gptq
        self.written = (self.settings["batches"], self.sizes["new_tokens"], self.sizes["repeats"])

    def recipe(self, arm: str, seed: int = 0, alpha: int = 0, rate: float = 0.0) -> Recipe:
        """The recipe of a run; 0 is the usual one."""
        values: dict[str, Any] = {
            "model.base_model": str(self.gptq if arm == "gptq" else self.base),
            "LoraConfig.r": self.sizes["rank"],
            "LoraConfig.lora_alpha": alpha or self.sizes["alpha"],
            "SFTConfig.per_device_train_batch_size": self.sizes["batch"],
            "SFTConfig.num_train_epochs": self.sizes["epochs"],
            "SFTConfig.learning_rate": rate or self.sizes["rate"],
            "SFTConfig.seed": seed,
        }
        return changed(parse(PLAN["recipe"], STUDY.script), values | ARMS[arm], STUDY.script)

    def quantise(self) -> None:
        """Make GPTQ's base, once. Raises ChatError."""
        if self.results.done("gptq") and (self.gptq / "config.json").is_file():
            return
        text, device = CALIBRATION.read_text(encoding="utf-8"), torch.device(self.device)
        made = quantise_on_text(self.base, self.gptq, text, self.settings["windows"], device)
        if not self.results.done("gptq"):
            self.results.put("gptq", made)
        print("The base is quantised by GPTQ.", flush=True)

    def lines(self) -> Iterator[list[Cell]]:
        """What can be done side by side, the most important first; then what is timed."""
        asked, sets, usual = self.settings, load_tasks(DATA), self.sizes["alpha"]
        tasks = [sets[name] for name in asked["tasks"]]

        def tune(key: str, arm: str, task: str = "quotes", judged: bool = False, **values: Any) -> Cell:
            work = partial(tuned, self.recipe(arm, **values), self.device, sets[task], self.sizes, judged)
            return Cell(f"{key}|{arm}|{values['seed']}", work)

        made = [
            Cell(f"untuned|{arm}", partial(untuned, self.recipe(arm), self.device, tasks, self.sizes))
            for arm in ARMS
        ]
        for task, seed, arm in product(asked["tasks"], SEEDS, ARMS):
            made.append(tune(f"task|{task}", arm, task, judged=True, seed=seed))
        for seed, rate, arm in product(asked["seeds"], asked["rates"], ARMS):
            made.append(tune(f"rate|{rate:g}", arm, seed=seed, rate=rate))
        for seed, alpha, arm in product(asked["seeds"], asked["alphas"], ARMS):
            if alpha != usual:  # the usual one's runs are those of the quotes
                lower = self.sizes["rate"] * usual / alpha  # by how much larger the adapter's scale is
                made.append(tune(f"alpha|fixed|{alpha}", arm, seed=seed, alpha=alpha))
                made.append(tune(f"alpha|compensated|{alpha}", arm, seed=seed, alpha=alpha, rate=lower))
        yield made
        speed, files = self.timed("speed")
        yield speed
        name, steps = PLAN["full_size"]
        yield full_size.cells(name, steps, ARMS, *self.written[:2]) if self.device == "cuda" else files

    def timed(self, kind: str) -> tuple[list[Cell], list[Cell]]:
        """How each arm's base writes here, and as a GGUF file where llama.cpp's tools are there."""
        recipes = {arm: self.recipe(arm) for arm in ARMS}
        files = inference.gguf_cells(self.base, self.out / "gguf", *self.written)
        return inference.speed_cells(kind, recipes, self.device, *self.written), files


def begin(base: Path, out: Path, device: str, asked: dict[str, Any]) -> Plan:
    """The plan in a folder, begun or not. Raises ChatError for results of another study there."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    known = {"base": fingerprint(str(base)), "data": content_of(DATA, CALIBRATION), "device": name}
    return Plan(base, STUDY.results(out, known | asked), device)


def read(argv: list[str]) -> argparse.Namespace:
    """The options; a wrong one ends the program with one line and exit code 2."""
    parser = STUDY.parser(__doc__)
    add_base(parser)
    parser.add_argument("--quick", action="store_true", help="a look, for two cores")
    parser.add_argument("--processor", type=full_path, metavar="FOLDER", help="add how its base writes here")
    parser.set_defaults(out=None, workers=None)
    given = parser.parse_args(argv)
    given.model = base_of(parser, given)
    given.out = given.processor or given.out or STUDY.folder("-quick" if given.quick else "")
    given.workers = given.workers or (8 if given.device == "cuda" else 1)
    return given


def main(argv: list[str]) -> int:
    """Run the study, or as much as there is time for; return the exit code."""
    given = read(argv)

    def measure(until: float) -> tuple[Results, int, int]:
        base = Path(find_base(given.model))
        if given.device == "cpu" and (reason := inference.lacking()):
            print(f"note: no GGUF files are measured: {reason}", file=sys.stderr)
        if given.processor:
            return on_processor(base, given.out)
        plan = begin(base, given.out, given.device, PLAN["quick" if given.quick else "full"])
        if not plan.results.done("about"):
            about = STUDY.about(argv) | {"base": f"{base.name} ({given.model.license})"}
            plan.results.put("about", about)
        return STUDY.measure(plan.results, plan.lines, until, given.workers, plan.quantise)

    return STUDY.main(given, argv, measure, "--processor" if given.processor else "--out")


def on_processor(base: Path, out: Path) -> tuple[Results, int, int]:
    """Add to the results in `out` how the same base writes on this machine's processor, by transformers and
    as GGUF files by llama.cpp. Raises ChatError for results of another base."""
    found = read_results(out, STUDY.version, STUDY.name, "--processor")  # which main has looked through
    settings = found["settings"] | {"base": fingerprint(str(base))}
    with reading(out / FILE, "--processor"):
        plan = Plan(base, STUDY.results(out, settings), "cpu", "gptq-processor")
    plan.settings = settings | {"windows": PLAN["quick"]["windows"]}  # which speed doesn't depend on
    plan.results.put(ABOUT, processor_now())
    return STUDY.measure(plan.results, lambda: plan.timed("processor"), before=plan.quantise)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
