"""What does a quantised base do to training, and to what comes out? One base as GPTQ, NF4, int8 and bf16.

    python studies/quantised.py --quick          two cores, under 20 minutes
    python studies/quantised.py --device cuda    all of it; with --minutes 8 as much of it as fits
    python studies/quantised.py --page FOLDER    what FOLDER/results.json says, as docs/studies/quantised.md

Each cell is kept in results.json as soon as it is measured: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import Parser, missing, run

try:
    import torch

    from core.command import ROOT, command_line
    from core.errors import ChatError
    from core.files import read_json, write_whole
    from core.machine import thread_count
    from core.tokenizer import ChatTokenizer
    from studies import quantised_gguf as gguf
    from studies.quantised_arms import ARMS, Job, Sizes, compensated, run_job
    from studies.quantised_cells import SEEDS
    from studies.quantised_report import write_report
    from studies.quantised_tasks import DATA, TASKS
    from studies.results import FILE, Results
    from train.base import find_base, fingerprint
    from train.recipe import full_path, load_recipe
    from train.to_gptq import quantise_checkpoint, windows_of
except ModuleNotFoundError as error:
    sys.exit(missing(error))

SCRIPT = "studies/quantised.py"
VERSION = 1  # another one when a figure comes to mean something else
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
SPARE_S = 15.0  # of --minutes, for the report


class Study:
    """What is to be done, and what is done already."""

    def __init__(
        self, base: Path, out: Path, device: str, sizes: Sizes, grid: dict[str, Any], workers: int = 1
    ) -> None:
        """Raises ChatError for results of another study in `out`."""
        self.base, self.out, self.device, self.workers = base, out, device, workers
        self.sizes, self.grid, self.gptq, self.failed = sizes, grid, out / "gptq", 0
        data = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(DATA.iterdir())))
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
        threads = max(1, thread_count() // self.workers) if self.workers > 1 else 0  # 0: as PyTorch has it
        return Job(what, arm, str(base), self.device, self.sizes, threads=threads, **values)

    def lines(self) -> Iterator[dict[str, Job]]:
        """The cells by their keys, line by line, the most important first."""
        grid = self.grid
        yield {f"untuned|{arm}": self.job("untuned", arm, tasks=grid["tasks"]) for arm in ARMS}
        for task in grid["tasks"]:
            yield {
                f"task|{task}|{arm}|{seed}": self.job("task", arm, task=task, seed=seed)
                for seed in SEEDS
                for arm in ARMS
            }
        yield {
            f"rate|{rate:g}|{arm}|{seed}": self.job("rate", arm, rate=rate, seed=seed)
            for seed in grid["seeds"]
            for rate in grid["rates"]  # the usual one's runs are those of the usual alpha
            for arm in ARMS
        }
        yield {
            f"speed|{arm}|{batch}": self.job("speed", arm, batch=batch)
            for arm in ARMS
            for batch in grid["batches"]
        }
        yield {
            f"alpha|{mode}|{alpha}|{arm}|{seed}": self.job("alpha", arm, alpha=alpha, seed=seed, rate=rate)
            for seed in grid["seeds"]
            for alpha in grid["alphas"]
            for mode, rate in self._rates(alpha).items()
            for arm in ARMS
        }

    def _rates(self, alpha: int) -> dict[str, float]:
        """The rate as it is, and divided by how much larger the adapter's scale is than usual."""
        lower = compensated(self.sizes, alpha, lambda **values: self.job("alpha", "bf16", **values))
        return {"fixed": self.sizes.rate} | ({"compensated": lower} if alpha != self.sizes.alpha else {})

    def run(self, until: float) -> bool:
        """Do what is left, no cell of which begins where it would end after `until`; whether all is done."""
        self._make_gptq()
        longest = 0.0
        pools = {arm: ProcessPoolExecutor(1, get_context("spawn")) for arm in ARMS[: self.workers]}
        try:
            for line in self.lines():
                left = {key: job for key, job in line.items() if not self.results.done(key)}
                alone = self.workers == 1 or any(job.what == "speed" for job in left.values())
                longest = self._do(left, pools if not alone else {}, until, longest)
            self._gguf(until - longest)
            return all(self.results.done(key) for line in self.lines() for key in line)
        finally:
            for pool in pools.values():
                pool.shutdown(wait=False, cancel_futures=True)

    def _do(
        self, left: dict[str, Job], pools: dict[str, ProcessPoolExecutor], until: float, longest: float
    ) -> float:
        """Do these cells, an arm a process, or here where there are no `pools`; return the longest's time."""
        running: dict[Future[dict[str, Any]], tuple[str, float]] = {}
        busy: set[str] = set()
        waiting = dict(left)
        while waiting or running:
            for key, job in list(waiting.items()):
                if time.monotonic() + longest > until:
                    waiting.clear()
                elif not pools:
                    began = time.monotonic()
                    self._measure(key, partial(run_job, waiting.pop(key)), began)
                    longest = max(longest, time.monotonic() - began)
                elif job.arm not in busy:
                    busy.add(job.arm)
                    running[pools[job.arm].submit(run_job, waiting.pop(key))] = key, time.monotonic()
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                key, began = running.pop(future)
                busy.discard(left[key].arm)
                self._measure(key, future.result, began)
                longest = max(longest, time.monotonic() - began)
        return longest

    def _measure(self, key: str, work: Callable[[], dict[str, Any]], began: float) -> None:
        """Keep what a cell measured; one that fails is told of, and the others go on."""
        try:
            self._keep(key, work(), began)
        except (ChatError, RuntimeError) as error:  # the second: PyTorch's, and of a process that died
            self.failed += 1
            print(f"error: {key}: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)

    def _keep(self, key: str, found: dict[str, Any], began: float) -> None:
        self.results.put(key, found)
        print(f"{key.replace('|', ' ')}: {time.monotonic() - began:.1f} s", flush=True)

    def _make_gptq(self) -> None:
        """Quantise the base once, on the text in studies/data/calibration.txt."""
        if self.results.done("gptq") and (self.gptq / "config.json").is_file():
            return
        count, length = self.grid["windows"]
        text = (DATA / "calibration.txt").read_text(encoding="utf-8")
        ids = ChatTokenizer(self.base).encoder.tokenize(text, False)
        began, windows = time.monotonic(), windows_of(ids, length, count)
        ratios = quantise_checkpoint(self.base, self.gptq, windows, torch.device(self.device))
        self._keep("gptq", {"ratios": ratios, "windows": list(windows.shape)}, began)

    def _gguf(self, until: float) -> None:
        """The same base in llama.cpp, on the processor."""
        if reason := gguf.lacking():
            print(f"note: no GGUF files are measured: {reason}", file=sys.stderr)
            return
        for kind in gguf.TYPES:
            if time.monotonic() < until and not self.results.done(f"gguf|{kind}"):
                began, sizes = time.monotonic(), self.sizes
                given = (list(self.grid["batches"]), sizes.new_tokens, sizes.repeats)
                work = partial(gguf.measure, self.base, kind, self.out / "gguf", *given)
                self._measure(f"gguf|{kind}", work, began)


def about(given: argparse.Namespace, cores: int) -> dict[str, Any]:
    """What the page says of where its figures come from."""
    libraries = ("torch", "transformers", "peft", "bitsandbytes", "trl")
    words = ["python", SCRIPT, *(["--quick"] if given.quick else []), "--device", given.device]
    return {
        "command": " ".join([*words, *(["--base FOLDER"] if given.base else [])]),
        "date": date.today().isoformat(),
        "cores": cores,
        "versions": {name: version(name) for name in libraries},
    }


def publish(folder: Path, pages: Path) -> int:
    """Write the page of `folder`'s results, its plots and its JSON into `pages`. Raises ChatError."""
    content = read_json(folder / FILE)
    if content.get("version") != VERSION:
        raise ChatError(
            f"{folder / FILE} has results of version {content.get('version')!r}, and now {VERSION}"
        )
    pages.mkdir(parents=True, exist_ok=True)
    write_whole(pages / "quantised.json", json.dumps(content, ensure_ascii=False) + "\n")
    print(write_report(content, pages, "quantised.md", "quantised-"))
    return 0


def main(argv: list[str]) -> int:
    """Run the study, or as much as there is time for; return the exit code."""
    parser = Parser(prog=f"python {SCRIPT}", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a look, for two cores")
    parser.add_argument("--base", type=full_path, help="a 16-bit checkpoint (the tour's)")
    parser.add_argument("--out", type=full_path, help="where results.json is (outputs/studies/quantised)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no cell that would end later")
    parser.add_argument("--page", type=full_path, metavar="FOLDER", help="write docs/studies of its results")
    parser.add_argument("--workers", type=int, choices=(1, 4), help="1, or a process an arm (with cuda)")
    given = parser.parse_args(argv)
    if given.base and not (given.base / "config.json").is_file():
        parser.error(f"--base {str(given.base)!r} is no checkpoint: it has no config.json")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA GPU here; leave --device out")
    if given.page:
        return run(lambda: publish(given.page, ROOT / "docs" / "studies"), "Stopped.")
    until = time.monotonic() + 60 * given.minutes - SPARE_S

    def work() -> int:
        base = given.base or Path(find_base(load_recipe("smollm2-quotes").model))
        out = given.out or ROOT / "outputs" / "studies" / ("quantised-quick" if given.quick else "quantised")
        workers = given.workers or (4 if given.device == "cuda" else 1)
        study = Study(base, out, given.device, *((QUICK, FEW) if given.quick else (FULL, GRID)), workers)
        if not study.results.done("about"):
            study.results.put("about", about(given, thread_count()))
        done = study.run(until)
        print(write_report(study.results.content, out))
        if not done:
            print(f"Not all is measured yet; go on with: {command_line(SCRIPT, argv)}")
        return 1 if study.failed else 0

    return run(work, f"Stopped; finished cells are kept. Go on with: {command_line(SCRIPT, argv)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
