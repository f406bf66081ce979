"""What is said of training in FP8 beside 16 bit: distances, the verdict, the tables and the picture."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from bench.train_same_fp8_report import (
    AGAIN,
    BASE16,
    END,
    ENDS,
    FAST,
    FP8,
    NF4,
    STEPS,
    TEXT,
    TOUR,
    WARM,
    apart,
    arms_of,
    draw,
    finals,
    key_of,
    pairs_of,
    report,
    tables,
    verdict,
)
from core.command import ROOT
from train.recipe import LAST_IN_16_BIT


def run_of(held_out: float, level: float = 2.0, steps: int = 40) -> dict[str, Any]:
    losses = [9.0] * WARM + [level] * (steps - WARM)
    return {"losses": losses, "held out": {"0": 3.0, "20": 1.0, str(steps): held_out}}


def content_of(rough: list[float]) -> dict[str, Any]:
    """Runs of a base in 16 bit that end at 2.0, 2.1 and 2.2, and in FP8 that end at `rough`."""
    runs = {key_of(TEXT, "Small", NF4, seed): run_of(2 + seed / 10, 2 + seed / 10) for seed in range(3)}
    runs |= {key_of(TEXT, "Small", FP8, seed): run_of(loss, 2.5) for seed, loss in enumerate(rough)}
    runs[key_of(TEXT, "Small", BASE16, 0)] = run_of(1.9)
    runs[key_of(TEXT, "Small", AGAIN, 0)] = run_of(2.0)
    first = runs[key_of(TEXT, "Small", NF4, 0)]
    whole = {FP8: [0.999, 0.04], "another batch": [0.3, 1.1]}
    first["gradients"] = {
        "matrices": {f"down_proj {side}": [[0.99, 0.1], [0.98, 0.3], [0.999, 0.05]] for side in "AB"},
        "all": whole,
    }
    runs[key_of(TOUR, "Small", NF4, 0)] = run_of(2.0) | {"scores": {"test_loss": 3.25, "format_kept": 1.0}}
    return {"settings": {"bases": ["Small", "Other"]}, "runs": runs}


def test_the_verdict_is_of_the_mean_and_says_how_far() -> None:
    def found(*rough: float) -> Any:
        return verdict(arms_of(content_of([*rough]), TEXT, "Small"))

    inside = found(2.05, 2.1, 2.3)
    assert inside["outside"] == 0
    assert inside["each"] == [True, True, False]
    assert (inside["spread"], inside["difference"]) == (pytest.approx(0.2), pytest.approx(0.05))
    assert found(2.3, 2.3, 2.3)["outside"] == pytest.approx(0.1)
    assert found(1.7, 1.8, 1.9)["outside"] == pytest.approx(0.2)
    assert found(2.0) is None  # one seed of three


def test_distances_are_of_the_same_seed_and_of_all_pairs_of_an_arm() -> None:
    arms = arms_of(content_of([2.0, 2.0, 2.0]), TEXT, "Small")
    assert apart(pairs_of(arms, FP8, NF4)) == pytest.approx(0.4)  # 0.5, 0.4, 0.3
    assert len(pairs_of(arms, NF4, NF4)) == 3
    assert apart(pairs_of(arms, NF4, NF4)) == pytest.approx(0.4 / 3)
    assert len(pairs_of(arms, NF4, BASE16)) == 1
    assert apart(pairs_of(arms, AGAIN, NF4)) == 0


def test_the_report_has_what_was_measured_and_nothing_of_what_was_not(tmp_path: Path) -> None:
    content = content_of([2.3, 2.3, 2.3])
    content["runs"] |= {key_of(TEXT, "Small", END, seed): run_of(2.1) for seed in range(3)}
    said = report(content)
    for row in (
        "| Small | NF4, FP8 | 3.0000 | 2.3000, 2.3000, 2.3000 | 2.3000 |",
        "| Small | NF4, FP8 | 0.2000 | +0.2000 | higher by 0.10000 | 0 of 3 |",
        f"| Small | {END} | 0.2000 | +0.0000 | within | 3 of 3 |",
        "| Small | 0.4000 | 0.1333 | 0.0000 | 0.0000 |  |",
        "| Small | B | 10 (30) |",
        "| Small | another batch | 0.300 | 110% |",
        "| NF4 | 3.250 | 1.000 |  |  |  |",
    ):
        assert row in said
    assert "Other" not in said
    assert "Small, the tour" not in said  # of one arm
    draw(content, tmp_path / "same.png")
    assert (tmp_path / "same.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_benchmarks_has_what_was_measured() -> None:
    """Its tables are the report's; what is said in words is computed again."""
    content = json.loads((ROOT / "bench/results/train-same-fp8.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert len(tables(content)) == 7
    for made in tables(content):
        assert made in page
    assert ENDS[END] == LAST_IN_16_BIT == 0.3  # "three tenths"
    bases = content["settings"]["bases"]
    texts, tour = [arms_of(content, TEXT, base) for base in bases], arms_of(content, TOUR, bases[0])
    costs = [statistics.mean(finals(a, NF4)) - statistics.mean(finals(a, BASE16)) for a in (*texts, tour)]
    to_the_end, ended = ([verdict(arms, arm) or {} for arms in (*texts, tour)] for arm in (FP8, END))
    assert all(found["outside"] and found["difference"] > 0 for found in to_the_end[:2])
    assert all(0 < found["difference"] < cost / 9 for found, cost in zip(to_the_end, costs, strict=True))
    assert all(found["difference"] < 0 or not found["outside"] for found in ended)
    gemma = texts[1]
    risen = {
        arm: [run["held out"]["300"] - run["held out"]["200"] for run in runs.values()]
        for arm, runs in gemma.items()
    }
    assert min(map(min, risen.values())) > 0
    assert max(risen[END]) < min(risen[NF4])
    said = " ".join((ROOT / "docs/train.md").read_text(encoding="utf-8").split())
    worst = max(found["difference"] for found in ended[:2])
    assert f"no more than {worst:.4f} nats above 16 bit's, where NF4 costs" in said
    assert f"NF4 costs {costs[1]:.2f} and {costs[0]:.2f} and FP8 to the end" in said
    small, large = (found["difference"] for found in to_the_end[:2])
    text = f"FP8 to the end {large:.3f} and {small:.3f}; in the tour it was {ended[2]['difference']:.3f}"
    assert text in said


def test_how_often_equal_runs_in_fp8_part() -> None:
    content = json.loads((ROOT / "bench/results/train-same-fp8.json").read_text(encoding="utf-8"))
    arms, count, partings = arms_of(content, TEXT, content["settings"]["bases"][0]), 0, list[int]()
    for seed in range(3):
        shares = {FP8: 0.0, FAST: 0.0} | ENDS
        runs = [(arms[arm][seed]["losses"], share) for arm, share in shares.items() if seed in arms[arm]]
        count += len(runs)
        for step in range(STEPS):
            there = [losses for losses, share in runs if step < STEPS - round(share * STEPS)]
            split = len({*(tuple(each[: step + 1]) for each in there)}) - len(
                {*(tuple(each[:step]) for each in there)}
            )
            partings += [step] * split
    text = f"{count} of SmolLM2 part {len(partings)} times before they end in 16 bit"
    page = " ".join((ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").split())
    assert f"{text}, at steps {min(partings)} to {max(partings)}," in page
