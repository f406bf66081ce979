"""Measure the chat against llama.cpp's own figures on this machine: python -m bench.chat [--runs 5]

That is what `make bench` does, in some twenty minutes on two cores; `bench/api.py` has its last group. Every
figure is the median of interleaved runs on the embedded model; each run measures every arm once, so that a
slow minute of the machine slows them all. Rates are tokens per second, first token to last.
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

from bench import api, measure
from bench.measure import Arms, interleave

RESULTS = Path(__file__).with_name("results") / "chat.json"

LONG = ("long",)  # minutes for one figure, which is measured by its name only


def main() -> None:
    """Run all groups of arms, print their tables, and keep the medians."""
    parser = argparse.ArgumentParser(description="Measure the chat against llama.cpp's own figures.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", choices=[*GROUPS, "api"], help="one group")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for group, (title, arms, report) in GROUPS.items():
        if given.only == group or not (given.only or group in LONG):
            print(f"\n{title}")
            figures = interleave(arms(), given.runs)
            medians = {name: statistics.median(runs) for name, runs in figures.items()}
            about = {"date": date.today().isoformat(), **measure.machine()}
            results[group] = {"about": about, "medians": medians, "runs": figures}
            for line in report(medians):
                print("  " + line)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")  # a group that is done stays
    measure.close()
    if given.only in ("", "api"):
        print("\nMany users of OpenAI's API")
        api.run(given.runs)
    print(f"\nkept in {RESULTS.parent}")


def decode_arms() -> Arms:
    """The same prompt and 256 tokens of reply, with and without what the app adds."""
    arms: Arms = {"llama-bench": measure.llama_bench(256, depth=measure.prompt_tokens())}
    for engine in measure.ENGINES:
        arms[f"{engine}, greedy"] = measure.handler(engine, measure.GREEDY)
        arms[f"{engine}, default sliders"] = measure.handler(engine, measure.DEFAULT)
        arms[f"{engine}, through Gradio"] = measure.gradio(engine)
    return arms


def shares(of: str, wanted: dict[str, float]) -> Callable[[dict[str, float]], list[str]]:
    """Report each arm as a share of the arm called `of`, beside what is wanted of names that end so."""

    def report(medians: dict[str, float]) -> list[str]:
        lines = []
        for name, figure in medians.items():
            goal = next((f"(at least {goal:.0%})" for end, goal in wanted.items() if name.endswith(end)), "")
            lines.append(f"{name:<34}{figure:8.1f} tokens/s {figure / medians[of]:6.1%} {goal}")
        return lines

    return report


def long_arms() -> Arms:
    """The last 500 of 3,500 tokens against the first 500, in per cent; llama-bench at depth 3,000 too."""
    bench = {d: measure.llama_bench(500, depth=d) for d in (0, 3000)}
    arms: Arms = {"llama-bench": lambda: 100 * bench[3000]() / bench[0]()}
    return arms | {engine: measure.long_reply(engine) for engine in measure.ENGINES}


def stop_arms() -> Arms:
    return {
        f"{engine}, in the {part}": measure.stop(engine, part)
        for engine in measure.ENGINES
        for part in ("prompt", "reply")
    }


def second_arms() -> Arms:
    return {engine: measure.second_turn(engine) for engine in measure.ENGINES}


def start_arms() -> Arms:
    arms: Arms = {}
    for engine in measure.ENGINES:
        arms[f"{engine}: seconds to the page"] = measure.start(engine)
        arms[f"{engine}: MB beside file and KV cache"] = measure.memory(engine)
    return arms


def plain(unit: str, goal: str) -> Callable[[dict[str, float]], list[str]]:
    """Report each arm's median with its unit and the goal."""
    return lambda medians: [f"{name:<40}{figure:8.2f} {unit} ({goal})" for name, figure in medians.items()]


GROUPS: dict[str, tuple[str, Callable[[], Arms], Callable[[dict[str, float]], list[str]]]] = {
    "decode": (
        "Decoding 256 tokens, agent and provider included",
        decode_arms,
        shares(
            "llama-bench",
            {"greedy": 0.98, "sliders": 0.90, "server, through Gradio": 0.93, "Gradio": 0.85},
        ),
    ),
    "second": (
        "Second turn: tokens evaluated beyond the new ones",
        second_arms,
        plain("tokens", "at most one batch: 128"),
    ),
    "long": (
        "A 3,500-token reply: its last 500 tokens in per cent of its first 500's speed",
        long_arms,
        plain("%", "within 10 % of llama-bench's"),
    ),
    "stop": ("Stop: seconds until the engine is idle", stop_arms, plain("s", "under 1 s")),
    "start": ("Start and memory", start_arms, plain("", "under 4 s; under 400 MB")),
}

if __name__ == "__main__":
    main()
