"""Measure `fully_shard` on two GPUs beside one: python -m bench.train_sharded [BASE]

    python -m bench.train_sharded phi-3.5 --steps 12

A random base of full size is trained on one GPU, on two that share it out, and on from the middle of that
(bench/train_sharded_arm.py); the same micro-batches in all of them, by transformers and PEFT. Printed and
kept in bench/results/train-sharded.json: bytes of weights on a GPU, peaks and their forecast, tokens a
second, losses, and whether the first forward pass gathers the bytes that one GPU has. Then the command
itself trains on two GPUs, with `fully_shard` and without, and has to end without a word from NCCL.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from bench.bursts import LENGTH
from bench.train import MODELS
from bench.train_models import CONFIGS, save_random
from bench.train_sharded_arm import CARDS, FIGURES

ABOUT = ("base", "device", "date")
STORAGE = {"one": "uint8", "shared": "uint8", "resumed": "uint8", "bfloat16": "bfloat16"}
# `resumed` goes on from what `shared` leaves; the last two are train/qlora.py, with fully_shard and without.
ARMS = [*STORAGE, "command", "replicated"]
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "train-sharded.json"
# For a machine without a GPU: does all of it run?
TINY = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=1000
)
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s>{{ m['content'] }}: "
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
CHECKS = ["first_loss", "bos", "untrained_stop", "pad_is_stop", "context"]


def save_base(config: PreTrainedConfig, folder: Path) -> None:
    """A checkpoint of random weights, whose tokenizer takes letters for tokens: it chats by TEMPLATE."""
    save_random(config, folder)
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def arm(name: str, cards: int, folder: Path, given: argparse.Namespace, storage: str) -> dict[str, Any]:
    """Run an arm in processes of its own; its figures, or the end of what it said."""
    about = [folder, "--steps", given.steps, "--length", given.length, "--storage", storage]
    about += ["--deterministic"] if given.deterministic else []
    done, _ = launched(["-m", "bench.train_sharded_arm", name, *about], cards)
    for line in done.stdout.splitlines():
        if line.startswith(FIGURES):
            found: dict[str, Any] = json.loads(line.removeprefix(FIGURES))
            return found
    return {"arm": name, "failed": why(done)}


def launched(command: list[Any], cards: int) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run Python with these arguments, as so many processes; what it said, and its seconds."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", cards]
    # The first card alone: with several in sight, one process would be refused.
    seen = os.environ | ({"CUDA_VISIBLE_DEVICES": "0"} if cards == 1 else {})
    seen |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # cuBLAS is deterministic with it alone
    words = [sys.executable, *(launcher if cards > 1 else []), *command]
    began = time.perf_counter()
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=ROOT, env=seen)
    return done, time.perf_counter() - began


def command(folder: Path, given: argparse.Namespace, shared: bool) -> dict[str, Any]:
    """What train/qlora.py itself did on two GPUs: its code, seconds, and what it said of NCCL."""
    rows = folder / "rows.jsonl"
    words = [f"w{number}" for number in range(40)]
    rows.write_text(
        "".join(
            json.dumps(
                {"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": f"{w} {w}"}]}
            )
            + "\n"
            for w in words * 8
        )
    )
    content = {
        "model": {"base_model": str(folder / "base"), "license": "none"},
        "data": {"path": str(rows)},
        "BitsAndBytesConfig": {"load_in_4bit": True},
        "SFTConfig": {"max_length": 256, "max_steps": 4, "eval_steps": 2, "logging_steps": 1},
        "fully_shard": shared,
        "waive": CHECKS,
    }
    path = folder / ("command.yaml" if shared else "replicated.yaml")
    path.write_text(yaml.safe_dump(content))
    done, seconds = launched(["train/qlora.py", path, "--root", folder], CARDS)
    said = (done.stdout + done.stderr).splitlines()
    noise = [line for line in said if "ProcessGroup" in line or "destroy_process_group" in line]
    found = {"arm": path.stem, "rc": done.returncode, "seconds": seconds, "noise": noise[:3]}
    return found if not done.returncode else found | {"failed": why(done)}


def why(done: subprocess.CompletedProcess[str]) -> str:
    """What the processes said of their end, less what the launcher says of it."""
    said = (done.stdout + done.stderr).splitlines()
    ends = [number for number, line in enumerate(said) if line.endswith("Error") or "rror: " in line]
    return "\n".join(said[max(0, ends[0] - 15) : ends[0] + 3] if ends else said[-20:])


def report(rows: list[dict[str, Any]]) -> None:
    """Print losses side by side, and what a card keeps."""
    by = {row["arm"]: row for row in rows}
    curves = {name: row["losses"] for name, row in by.items() if row.get("losses")}
    for step in next(iter(curves.values()), {}):
        there = [f"{name} {curve[step]:.5f}" for name, curve in curves.items() if step in curve]
        print(f"step {step}: {', '.join(there)}")
    if by.get("one", {}).get("weights_gb") and "weights_gb" in by.get("shared", {}):
        print(f"weights: {by['shared']['weights_gb'] / by['one']['weights_gb']:.3f} of one card's")


def name_of(cuda: bool) -> str:
    """The GPU's name."""
    return torch.cuda.get_device_name() if cuda else "cpu"


def line(row: dict[str, Any]) -> str:
    """An arm's figures, less its losses."""
    figures = [(key, value) for key, value in row.items() if key != "losses"]
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures)


def main() -> None:
    """Measure, print, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", default="phi-3.5", choices=[*MODELS, "tiny"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--deterministic", action="store_true", help="slower; equal runs give equal losses")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    cuda = torch.cuda.device_count() >= CARDS
    if not cuda and given.base != "tiny":
        parser.error(f"this needs {CARDS} CUDA GPUs; without, `tiny` shows that it runs")
    about = dict(zip(ABOUT, (given.base, name_of(cuda), date.today().isoformat()), strict=True))
    kept = json.loads(given.out.read_text()) if given.out.exists() else []
    rows = {row["arm"]: row for row in kept if row["base"] == given.base}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_base(TINY if given.base == "tiny" else CONFIGS[MODELS[given.base]], folder / "base")
        for name in given.arms:
            if name in STORAGE:
                cards = 1 if name == "one" else CARDS
                row = arm(name, cards, folder, given, STORAGE[name])
            else:
                row = command(folder, given, name == "command")
            rows[name] = about | row
            given.out.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
            print(line(row), flush=True)
    report(list(rows.values()))


if __name__ == "__main__":
    main()
