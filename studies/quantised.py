"""What does a quantised base do to training, and to what comes out? One base as GPTQ, NF4, int8 and bf16.

    python studies/quantised.py --quick              two cores, some 12 minutes
    python studies/quantised.py --device cuda        all of it; with --minutes 8 as much of it as fits
    python studies/quantised.py --processor FOLDER   adds to its results how the base writes on a processor
    python studies/quantised.py --page FOLDER        makes docs/studies/quantised.md of its results

Each cell is kept in results.json as soon as it is measured: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import Parser, missing, run

try:
    import torch

    from bench import full_size, inference
    from bench.cells import Cell, Results, Runner, read_results
    from bench.comparison import SEEDS
    from core.command import ROOT, command_line
    from core.files import write_whole
    from core.machine import thread_count
    from core.tokenizer import ChatTokenizer
    from studies.quantised_arms import ARMS, QUANTISED, Job, Sizes, compensated, run_job
    from studies.quantised_report import write_report
    from studies.quantised_tasks import DATA, TASKS
    from train.base import find_base, fingerprint
    from train.recipe import full_path, load_recipe
    from train.sections import Model
    from train.to_gptq import quantise_checkpoint, windows_of
except ModuleNotFoundError as error:
    sys.exit(missing(error))

SCRIPT = "studies/quantised.py"
VERSION = 2  # another one when a figure comes to mean something else
FULL = Sizes(train_rows=48, test_rows=16, epochs=3, new_tokens=32)
QUICK = Sizes(train_rows=8, test_rows=4, epochs=2, batch=4, unlike_tokens=64, new_tokens=16, repeats=3)
GRID: dict[str, Any] = {
    "tasks": TASKS,
    "alphas": (16, 32, 64, 128, 256, 512),
    "rates": (3e-4, 3e-3, 1e-2, 3e-2),
    "seeds": SEEDS,
    "batches": (1, 8, 32),
    "windows": (128, 256),  # to calibrate on, and their tokens
}
FEW: dict[str, Any] = GRID | {
    "tasks": ("quotes",),
    "alphas": (16, 512),
    "rates": (1e-2,),
    "seeds": (1,),
    "batches": (1, 4),
    "windows": (16, 128),
}
FULL_SIZE = "llama2-7b-gptq-quotes"  # the recipe; it is tried where there is a GPU
FULL_SIZE_STEPS = 16
CALIBRATION = DATA / "calibration.txt"
SPARE_S = 15.0  # of --minutes, for the report


class Study:
    """What is to be done, and what is done already."""

    def __init__(
        self, base: Path, out: Path, device: str, sizes: Sizes, grid: dict[str, Any], workers: int = 1
    ) -> None:
        """Raises ChatError for results of another study in `out`."""
        self.base, self.out, self.device, self.workers = base, out, device, workers
        self.sizes, self.grid, self.gptq = sizes, grid, out / "gptq"
        files = sorted((CALIBRATION, *DATA.glob("*.jsonl")))
        data = hashlib.sha256(b"".join(path.read_bytes() for path in files))
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        settings: dict[str, Any] = {
            "base": fingerprint(str(base)),
            "data": data.hexdigest()[:16],
            "device": name,
        }
        settings |= {"sizes": asdict(self.sizes)}
        settings |= {key: list(value) for key, value in self.grid.items()}
        self.results = Results(out, VERSION, settings)

    def job(self, what: str, arm: str, **values: Any) -> Job:
        """A cell of an arm."""
        base = self.gptq if arm == "gptq" else self.base
        return Job(what, arm, str(base), self.device, self.sizes, **values)

    def lines(self) -> Iterator[list[Cell]]:
        """What can be done side by side, the most important first; then what is timed."""
        grid, job = self.grid, self.job
        jobs = {f"untuned|{arm}": job("untuned", arm, tasks=grid["tasks"]) for arm in ARMS}
        for task, seed, arm in product(grid["tasks"], SEEDS, ARMS):
            jobs[f"task|{task}|{arm}|{seed}"] = job("task", arm, task=task, seed=seed)
        for seed, rate, arm in product(grid["seeds"], grid["rates"], ARMS):
            jobs[f"rate|{rate:g}|{arm}|{seed}"] = job("rate", arm, rate=rate, seed=seed)
        for seed, alpha, arm in product(grid["seeds"], grid["alphas"], ARMS):
            if alpha != self.sizes.alpha:  # the usual one's runs are those of the quotes
                for mode, rate in self._rates(alpha).items():
                    one = job("alpha", arm, alpha=alpha, seed=seed, rate=rate)
                    jobs[f"alpha|{mode}|{alpha}|{arm}|{seed}"] = one
        yield [Cell(key, partial(run_job, one)) for key, one in jobs.items()]
        timed = {f"speed|{arm}": job("speed", arm, batches=grid["batches"]) for arm in ARMS}
        yield [Cell(key, partial(run_job, one), alone=True) for key, one in timed.items()]
        if self.device == "cuda":
            yield [self._full_size(arm) for arm in ARMS]
        else:
            yield gguf_cells(self.base, self.out, self.sizes, grid["batches"])

    def _rates(self, alpha: int) -> dict[str, float]:
        """The rate as it is, and divided by how much larger the adapter's scale is than usual."""
        lower = compensated(self.sizes, alpha, lambda **values: self.job("alpha", "bf16", **values))
        return {"fixed": self.sizes.rate, "compensated": lower}

    def _full_size(self, arm: str) -> Cell:
        """The full-size recipe with its base as this arm has it."""
        given = {"GPTQConfig": None, "BitsAndBytesConfig": None} | QUANTISED[arm]
        batches = self.grid["batches"]
        work = partial(full_size.measure, FULL_SIZE, given, FULL_SIZE_STEPS, batches, self.sizes.new_tokens)
        return Cell(f"full|{arm}", work, alone=True)

    def run(self, until: float = math.inf) -> int:
        """Do what is left, no cell of which begins where it would end after `until`.

        Returns how many cells failed. Raises ChatError where the base can't be quantised.
        """
        threads = max(1, thread_count() // self.workers)
        with Runner(self.results, until, self.workers, partial(torch.set_num_threads, threads)) as runner:
            runner.start(self.left)
            make_gptq(self.base, self.gptq, self.device, self.grid["windows"], self.results)
            for line in self.lines():
                runner.do(line)
        return runner.failed

    @property
    def left(self) -> int:
        """How many cells aren't there yet."""
        return sum(not self.results.done(cell.key) for line in self.lines() for cell in line)


def make_gptq(base: Path, out: Path, device: str, windows: tuple[int, int], results: Results) -> None:
    """Quantise the base once, on the text in studies/data/calibration.txt. Raises ChatError."""
    if results.done("gptq") and (out / "config.json").is_file():
        return
    count, length = windows
    text = CALIBRATION.read_text(encoding="utf-8")
    ids = ChatTokenizer(base).encoder.tokenize(text, False)
    given = windows_of(ids, length, count)
    ratios = quantise_checkpoint(base, out, given, torch.device(device))
    if not results.done("gptq"):
        results.put("gptq", {"ratios": ratios, "windows": list(given.shape)})
    print("The base is quantised by GPTQ.", flush=True)


def on_processor(base: Path, out: Path) -> int:
    """Add to the results in `out` how the same base writes on this machine's processor, by transformers and
    as GGUF files by llama.cpp; return how many cells failed. Raises ChatError for results of another base."""
    settings = read_results(out, VERSION)["settings"]
    results = Results(out, VERSION, settings | {"base": fingerprint(str(base))})
    packed = out / "gptq-processor"  # speed doesn't depend on what it was calibrated on
    make_gptq(base, packed, "cpu", FEW["windows"], results)
    sizes, batches = Sizes(**settings["sizes"]), tuple(settings["batches"])
    cells = []
    for arm in ARMS:
        job = Job("speed", arm, str(packed if arm == "gptq" else base), "cpu", sizes, batches=batches)
        cells.append(Cell(f"processor|{arm}", partial(run_job, job)))
    cells += gguf_cells(base, out, sizes, batches)
    load = round(os.getloadavg()[0], 1)  # of this and other programs, in cores
    here = {"cores": thread_count(), "date": date.today().isoformat(), "load": load}
    results.put("about processor", here)
    with Runner(results) as runner:
        runner.do(cells)
    return runner.failed


def gguf_cells(base: Path, out: Path, sizes: Sizes, batches: tuple[int, ...]) -> list[Cell]:
    """The base as GGUF files in llama.cpp, where its tools are there."""
    if inference.lacking():
        return []
    given = (batches, sizes.new_tokens, sizes.repeats)
    return [
        Cell(f"gguf|{kind}", partial(inference.gguf_written, base, kind, out / "gguf", *given), alone=True)
        for kind in inference.GGUF_TYPES
    ]


def about(given: argparse.Namespace, base: Path, licence: str) -> dict[str, Any]:
    """What the page says of where its figures come from."""
    libraries = ("torch", "transformers", "peft", "bitsandbytes", "trl")
    words = ["python", SCRIPT, *(["--quick"] if given.quick else []), "--device", given.device]
    return {
        "command": " ".join([*words, *(["--base FOLDER"] if given.base else [])]),
        "base": f"{base.name} ({licence})",
        "date": date.today().isoformat(),
        "cores": thread_count(),
        "versions": {name: version(name) for name in libraries},
    }


def publish(folder: Path, pages: Path, name: str = "quantised") -> int:
    """Write the page of `folder`'s results, its plots and its JSON into `pages`. Raises ChatError."""
    content = read_results(folder, VERSION)
    pages.mkdir(parents=True, exist_ok=True)
    write_whole(pages / f"{name}.json", json.dumps(content, ensure_ascii=False) + "\n")
    print(write_report(content, pages, f"{name}.md", f"{name}-"))
    return 0


def read(argv: list[str]) -> argparse.Namespace:
    """The options; a wrong one ends the program with one line and exit code 2."""
    parser = Parser(prog=f"python {SCRIPT}", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--quick", action="store_true", help="a look, for two cores")
    add("--base", type=full_path, help="a 16-bit checkpoint, or a GGUF that becomes one (the tour's)")
    add("--license", default="licence not given", help="of --base, for the page")
    add("--out", type=full_path, help="where results.json is (outputs/studies/quantised)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--minutes", type=float, default=math.inf, help="begin no cell that would end later")
    add("--workers", type=int, choices=range(1, 33), metavar="N", help="train side by side (1; with cuda 8)")
    add("--processor", type=full_path, metavar="FOLDER", help="measure here how its results' base writes")
    add("--page", type=full_path, metavar="FOLDER", help="write docs/studies of its results")
    add("--name", default="quantised", help="of the page")
    given = parser.parse_args(argv)
    if given.base and given.base.suffix != ".gguf" and not (given.base / "config.json").is_file():
        parser.error(f"--base {str(given.base)!r} is no checkpoint, as it has no config.json, and no GGUF")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA GPU here; leave --device out")
    if Path(given.name).name != given.name:
        parser.error(f"--name {given.name!r} can't be a file's")
    return given


def model_of(given: argparse.Namespace) -> Model:
    """The base that was asked for."""
    if not given.base:
        return load_recipe("smollm2-quotes").model
    folder, file = (given.base.parent, given.base.name) if given.base.is_file() else (given.base, "")
    return Model(base_model=str(folder), gguf_file=file, license=given.license)


def main(argv: list[str]) -> int:
    """Run the study, or as much as there is time for; return the exit code."""
    given = read(argv)
    until = time.monotonic() + 60 * given.minutes - SPARE_S

    def work() -> int:
        if given.page:
            return publish(given.page, ROOT / "docs" / "studies", given.name)
        model = model_of(given)
        base = Path(find_base(model))
        if given.device == "cpu" and (reason := inference.lacking()):
            print(f"note: no GGUF files are measured: {reason}", file=sys.stderr)
        if given.processor:
            return 1 if on_processor(base, given.processor) else 0
        out = given.out or ROOT / "outputs" / "studies" / ("quantised-quick" if given.quick else "quantised")
        workers = given.workers or (8 if given.device == "cuda" else 1)
        study = Study(base, out, given.device, *((QUICK, FEW) if given.quick else (FULL, GRID)), workers)
        if not study.results.done("about"):
            study.results.put("about", about(given, base, model.license))
        failed = study.run(until)
        print(write_report(study.results.content, out))
        if study.left:
            print(f"{study.left} cells aren't measured yet; go on with: {command_line(SCRIPT, argv)}")
        return 1 if failed else 0

    return run(work, f"Stopped; finished cells are kept. Go on with: {command_line(SCRIPT, argv)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
