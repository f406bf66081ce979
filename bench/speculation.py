"""Measure whether guessing tokens ahead pays: python -m bench.speculation [--runs 5] (two minutes)

llama-server can draft a reply's next tokens from what stands in the chat already (`--spec-type ngram-simple`,
llama.cpp's common/ngram-map.cpp) and check them in one batch. It is an option of its start, for all chats.
Greedy replies of one user with it and without, in turns: a function with one name changed, which repeats the
chat, and a summary, which hardly does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import measure
from bench.measure import interleave
from chat.llama_server import LlamaServerEngine
from core.engine import Request, Sampling
from core.machine import thread_count
from core.registry import load_registry

RESULTS = Path(__file__).with_name("results") / "speculation.json"
KINDS = ("off", "ngram-simple", "ngram-mod")
CODE = Path(__file__).resolve().parents[1] / "core" / "progress.py"
TEXT = Path(__file__).resolve().parents[1] / "docs" / "spaces.md"
TASKS = {
    "code edit": "Repeat this file, but call the class Meter:\n\n" + CODE.read_text(encoding="utf-8"),
    "summary": "Sum this text up:\n\n" + TEXT.read_text(encoding="utf-8")[:3000],
}
SAMPLING = Sampling(temperature=0, repeat_penalty=1, max_tokens=200)


class Speculating(LlamaServerEngine):
    """The app's llama-server with one slot, and perhaps an option more."""

    kind = "off"

    def _command(self) -> list[str]:
        command = super()._command()
        command[command.index("--parallel") + 1] = "1"  # drafts would take other chats' share of a batch
        return [*command, *([] if self.kind == "off" else ["--spec-type", self.kind])]


def started(kind: str) -> Speculating:
    """An engine that drafts by `kind`, for one chat at a time."""
    registry = load_registry(measure.ROOT / "models.json")
    model = registry.locate(next(iter(registry.entries.values())))
    made = type(kind, (Speculating,), {"kind": kind})
    engine: Speculating = made(model, 4096, thread_count())
    return engine


def speed(engine: Speculating, ids: list[int]) -> Callable[[], float]:
    """Tokens per second of a reply, its prompt not counted."""

    def measured() -> float:
        generation = engine.generate(Request(ids, SAMPLING))
        for _ in generation:
            pass
        return generation.stats.generated_per_s

    return measured


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description="Measure speculation from the chat's own text.")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    engines = {kind: started(kind) for kind in KINDS}
    arms: dict[str, Callable[[], float]] = {}
    for task, text in TASKS.items():
        prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        ids = engines["off"].tokenize(prompt, True)
        arms |= {f"{task}, {kind}": speed(engine, ids) for kind, engine in engines.items()}
    figures = interleave(arms, given.runs)
    medians = {name: statistics.median(runs) for name, runs in figures.items()}
    for name, median in medians.items():
        share = median / medians[f"{name.split(', ')[0]}, off"]
        print(f"{name:28}{median:8.1f} tokens/s   {share:.2f}")
    about = {"date": date.today().isoformat(), **measure.machine()}
    RESULTS.write_text(json.dumps({"about": about, "medians": medians, "runs": figures}, indent=1) + "\n")
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
