"""Measure the conversion beside llama.cpp's own tools on this machine: python -m bench.convert [--runs 3]

`phi`: an adapter on a checkpoint of Phi-3.5-mini's shape with random weights becomes Q4_K_M and Q5_K_M,
without the checks, beside llama.cpp's converter and two llama-quantize runs on a checkpoint merged already.
`smollm2`: an adapter on the embedded model becomes a verified Q5_K_M, by the command as a user gives it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from threading import Event, Thread

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import measure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "convert.json"
WORK = ROOT / ".cache" / "bench-convert"
TYPES = ("Q4_K_M", "Q5_K_M")


def main() -> None:
    """Make the models if need be, run the arms in turn, and keep all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("phi", "smollm2"))
    parser.add_argument("--layers", type=int, default=32, help="of the Phi; fewer to try this out")
    parser.add_argument("--arm", help=argparse.SUPPRESS)  # one arm, in a process of its own
    given = parser.parse_args()
    if given.arm:
        print(json.dumps(ours(Path(given.arm))))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    about = {"date": date.today().isoformat(), **measure.machine()}
    for name, group in {"phi": lambda: phi(given.runs, given.layers), "smollm2": smollm2}.items():
        if given.only in (None, name):
            results[name] = {"about": about, **group()}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(json.dumps(results[name], indent=1))


def ours(run: Path) -> dict[str, float]:
    """Merge, convert and quantise; seconds of each step, and our own peak memory in bytes."""
    from convert.pipeline import Pipeline
    from convert.source import find_source
    from convert.stages import Settings

    shutil.rmtree(run / "convert", ignore_errors=True)
    pipeline = Pipeline(find_source(str(run), run.parent), Settings(base="full", imatrix="none"))
    started = time.perf_counter()
    pipeline.convert()
    shutil.rmtree(pipeline.checkpoint)  # as `refer` does, when the checkpoint's answers are on disk
    for kind in TYPES:
        pipeline.quantise(kind)
    seconds = {step: took for step, took, _ in pipeline.costs}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**seconds, "seconds": time.perf_counter() - started, "peak_memory": peak}


def theirs(merged: Path, out: Path) -> dict[str, float]:
    """llama.cpp's converter and two llama-quantize runs, nothing else."""
    from convert.llamacpp import converter, tool
    from core.machine import thread_count

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    sixteen, seconds = out / "16bit.gguf", {}
    commands = {"convert": [sys.executable, converter(), merged, "--outfile", sixteen, "--outtype", "bf16"]}
    for kind in TYPES:
        commands[kind] = [tool("llama-quantize"), sixteen, out / f"{kind}.gguf", kind, thread_count()]
    for step, command in commands.items():
        started = time.perf_counter()
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        seconds[step] = time.perf_counter() - started
    shutil.rmtree(out)
    return {**seconds, "seconds": sum(seconds.values())}


def phi(runs: int, layers: int) -> dict[str, object]:
    """Both arms in turn. The merged checkpoint for llama.cpp's arm is ours, made beforehand."""
    from bench.models import phi_run
    from convert.base import find_base
    from convert.merge import merge

    run = phi_run(WORK / f"phi-{layers}", layers)
    base, merged = find_base(run / "adapter", None), WORK / f"phi-{layers}-merged"
    if not merged.is_dir():
        merge(base, run / "adapter", merged, lambda done, total: None)
    figures: dict[str, list[dict[str, float]]] = {"tune2chat": [], "llama.cpp": []}
    sixteen = sum(path.stat().st_size for path in merged.glob("*.safetensors"))
    for number in range(runs):
        print(f"run {number + 1} of {runs}", flush=True)
        command = [sys.executable, "-m", "bench.convert", "--arm", str(run)]
        with PeakDisk(run / "convert") as disk:
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        row = json.loads(done.stdout.splitlines()[-1])
        figures["tune2chat"].append({**row, "peak_disk_of_16_bit": disk() / sixteen})
        figures["llama.cpp"].append(theirs(merged, WORK / "theirs"))
    medians = {arm: statistics.median(row["seconds"] for row in rows) for arm, rows in figures.items()}
    ratio = medians["tune2chat"] / medians["llama.cpp"]
    return {"medians": medians, "ratio": round(ratio, 3), "runs": figures}


def smollm2() -> dict[str, object]:
    """The command of the README, from an adapter to a verified file; once, for it prints its own table."""
    from bench.models import smollm2_run

    root = WORK / "smollm2"
    shutil.rmtree(root, ignore_errors=True)
    run = smollm2_run(root)
    command = [sys.executable, ROOT / "convert" / "to_gguf.py", run.name, "--quant", "q5", "--root", root]
    started = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return {
        "seconds": time.perf_counter() - started,
        "exit": done.returncode,
        "printed": done.stdout.replace(f"{ROOT}/", "").splitlines(),
    }


class PeakDisk:
    """Watch how large a folder grows while the block runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.peak, self._ended = folder, 0, Event()

    def __enter__(self) -> Callable[[], int]:
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return lambda: self.peak

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.peak = max(self.peak, folder_bytes(self.folder))


def folder_bytes(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except FileNotFoundError:  # just renamed
                continue
    return total


if __name__ == "__main__":
    main()
