"""Measure training beside TRL and Unsloth, in turns on one GPU: python -m bench.train [MODEL ...]

    python -m bench.train phi-3.5 mistral-7b --arms tune2chat:lean tune2chat:fast unsloth:lean trl:lean

Each arm is a process with the same random base of full size, the same documents and the same trainable
parameters (bench/train_arm.py). Those of one --arms are there at once and train a burst of steps in turns;
when they have ended, those of the next are. Medians go into bench/results/train.json. Needs CUDA; TRL and
Unsloth have to be installed for their arms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.bursts import LENGTH
from bench.train_models import CONFIGS, save_random
from train.card import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "train.json"
MODELS = {
    "phi-3.5": "microsoft/Phi-3.5-mini-instruct",
    "gemma-2b": "google/gemma-2b-it",
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.3",
    "gemma-7b": "google/gemma-7b-it",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "gemma-3-4b": "google/gemma-3-4b-it",
}
ARMS = ["tune2chat:lean", "tune2chat:fast", "unsloth:lean", "trl:lean"]
KNOWN_ARMS = [*ARMS, "tune2chat:lean-fp8", "tune2chat:fast-fp8", "unsloth:fast", "trl:fast"]


class Arm:
    """A process that trains a burst of steps when it is told to."""

    def __init__(self, name: str, base: Path, given: argparse.Namespace) -> None:
        self.name, self.lines = name, list[dict[str, Any]]()
        kind, mode = name.split(":")
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process runs)
        command = [sys.executable, "-m", "bench.train_arm", kind, mode, str(base)]
        command += ["--batch", str(given.batch), "--steps", str(given.steps)]
        # Peers may want other releases of the libraries that they share with this project.
        path = {"PYTHONPATH": given.peer_path} if given.peer_path and kind != "tune2chat" else {}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=ROOT,
            env=os.environ | path,
        )

    def read(self) -> dict[str, Any] | None:
        """The next line of figures; None, with the end of its log shown, where the arm has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"arm"'):  # libraries print too
                found: dict[str, Any] = json.loads(line)
                return found
        self.log.seek(0)
        print(f"{self.name} ended:\n{self.log.read()[-2000:]}", flush=True)
        return None

    def burst(self) -> None:
        """Train a burst and keep its figures."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        if line := self.read():
            self.lines.append(line)

    def end(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def measure(model: str, base: Path, names: Sequence[str], given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each of the arms of these names, which are there at once."""
    arms = [Arm(name, base, given) for name in names]
    try:
        # The first burst, all together: kernels are compiled and chosen, memory is taken. It isn't counted.
        running = [arm for arm in arms if arm.read()]
        for _ in range(given.repeats):
            for arm in running:
                arm.burst()
    finally:
        for arm in arms:
            arm.end()
    return [_row(model, arm.lines, given) for arm in running if arm.lines]


def _row(model: str, lines: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    speeds = [line["tokens"] / line["seconds"] for line in lines]
    last = lines[-1]
    return {
        "arm": last["arm"],
        "mode": last["mode"],
        "model": model,
        "trainable": last["trainable"],
        "tokens_per_s": round(statistics.median(speeds)),
        "tokens_per_s_each": [round(speed) for speed in speeds],
        "peak_gib": round(max(line["peak_gib"] for line in lines), 2),
        "loss": round(last["loss"], 4),
        "tokens_per_step": round(last["tokens"] / given.steps),
        "device": torch.cuda.get_device_name(),
        "date": date.today().isoformat(),
        "versions": last["versions"],
    }


def compare(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of speed and memory, with ratios to Unsloth's where the trainable parameters are the same."""
    lines = []
    for row in rows:
        peers = [other for other in rows if other["arm"] == "unsloth" and other["model"] == row["model"]]
        each = row["tokens_per_s_each"]
        line = f"{row['model']:<11}{row['arm']:<10}{row['mode']:<9}{row['tokens_per_s']:>8,} tokens/s"
        line += f" ({min(each):,} to {max(each):,}) {row['peak_gib']:>6.2f} GiB"
        for peer in peers:
            if peer["trainable"] != row["trainable"]:
                line += f"  no ratio: {row['trainable']:,} trainable, Unsloth {peer['trainable']:,}"
            elif peer is not row:
                speed, memory = (row[key] / peer[key] for key in ("tokens_per_s", "peak_gib"))
                line += f"  {speed:.2f} times Unsloth's speed, {memory:.2f} times its memory"
        lines.append(line)
    return lines


def fp8_table(rows: list[dict[str, Any]]) -> str:
    """FP8 beside 16 bit, of each model and tokens a step; Unsloth where it was measured with them."""
    columns = ["lean", "lean-fp8", "fast", "fast-fp8"]
    cells: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        name = row["mode"] if row["arm"] == "tune2chat" else row["arm"]
        cells.setdefault((row["model"], LENGTH * round(row["tokens_per_step"] / LENGTH)), {})[name] = row
    lines = []
    for (model, tokens), found in cells.items():
        shown = [f"{model}, {tokens:,} tokens"]
        for name in [*columns, "unsloth"]:
            if not (row := found.get(name)):
                shown.append("")
                continue
            exact = found[name.removesuffix("-fp8")]
            ratio = f" ({row['tokens_per_s'] / exact['tokens_per_s']:.2f})" if exact is not row else ""
            shown.append(f"{row['tokens_per_s']:,}{ratio}, {row['peak_gib']:.1f} GiB")
        lines.append(shown)
    return table(("tokens/s and memory", "lean", "lean, FP8", "fast", "fast, FP8", "Unsloth"), lines)


def main() -> None:
    """Measure the models that were named, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["phi-3.5", "gemma-2b", "mistral-7b"])
    parser.add_argument("--arms", nargs="+", action="append", help="again, for those that don't fit beside")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of a burst")
    parser.add_argument("--batch", type=int, default=4, help="blocks of 2,048 tokens a step")
    parser.add_argument("--peer-path", default="", help="PYTHONPATH of TRL's and Unsloth's processes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    together = given.arms or [ARMS]
    for names, known in ((given.models, [*MODELS]), *((arms, KNOWN_ARMS) for arms in together)):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU, and there is none")
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    for model in given.models:
        base = Path(tempfile.mkdtemp()) / "base"
        try:
            save_random(CONFIGS[MODELS[model]], base)
            found = list[dict[str, Any]]()
            for names in together:
                found += measure(model, base, names, given)
                print("\n".join(compare(found)), flush=True)
                given.out.write_text(json.dumps(rows + found, indent=1) + "\n")
            rows += found
        finally:
            shutil.rmtree(base.parent)


if __name__ == "__main__":
    main()
