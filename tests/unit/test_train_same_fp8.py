"""What is said of training in FP8 beside 16 bit: distances, the verdict, the tables and the picture."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
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
    Arms,
    apart,
    arms_of,
    draw,
    finals,
    gradients_of,
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


def measured() -> tuple[dict[str, Any], str]:
    """The results, and the page that tells of them."""
    content = json.loads((ROOT / "bench/results/train-same-fp8.json").read_text(encoding="utf-8"))
    return content, " ".join((ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").split())


def partings_of(arms: Arms) -> tuple[int, list[int]]:
    """How many runs in FP8 there are, and the steps (from 1 on) at which those of a seed part."""
    count, partings = 0, list[int]()
    for seed in range(3):
        shares = {FP8: 0.0, FAST: 0.0} | ENDS
        runs = [(arms[arm][seed]["losses"], share) for arm, share in shares.items() if seed in arms[arm]]
        count += len(runs)
        for step in range(STEPS):
            there = [losses for losses, share in runs if step < STEPS - round(share * STEPS)]
            split = len({*(tuple(each[: step + 1]) for each in there)}) - len(
                {*(tuple(each[:step]) for each in there)}
            )
            partings += [step + 1] * split
    return count, partings


def test_how_often_equal_runs_part() -> None:
    content, page = measured()
    small, gemma = (arms_of(content, TEXT, base) for base in content["settings"]["bases"])
    count, partings = partings_of(small)
    text = f"{count} of them part {len(partings)} times before they end in 16 bit"
    assert f"{text}, at steps {min(partings)} to {max(partings)}," in page
    assert small[AGAIN][0]["losses"] == small[NF4][0]["losses"]
    twice = zip(gemma[AGAIN][0]["losses"], gemma[NF4][0]["losses"], strict=True)
    first = next(step for step, (one, other) in enumerate(twice, 1) if one != other)
    assert min(partings_of(gemma)[1]) == first
    assert f"Equal runs of Gemma 3 part at step {first}, in 16 bit too" in page


def test_what_the_page_says_of_both_losses() -> None:
    content, page = measured()
    bases = content["settings"]["bases"]
    higher = [verdict(arms_of(content, TEXT, base)) or {} for base in reversed(bases)]
    low, high = (f"{found['difference']:.3f}" for found in higher)
    assert f"No. To the end in FP8, held-out loss is {low} to {high} nats a token higher" in page
    tour = arms_of(content, TOUR, bases[0])
    exact, rough, ended = (
        [run["scores"]["test_loss"] for run in tour[arm].values()] for arm in (NF4, FP8, END)
    )
    apart = [statistics.mean(losses) - statistics.mean(exact) for losses in (rough, ended)]
    assert f"its mean is {apart[0]:.4f} higher than 16 bit's, whose seeds span {np.ptp(exact):.4f}" in page
    text = f"at {statistics.mean(rough):.5f} just higher than their highest, {max(exact):.5f}. "
    assert f"{text}With the end in 16 bit it is {apart[1]:.4f} higher, and within." in page
    assert min(exact) <= statistics.mean(ended) <= max(exact) < statistics.mean(rough)


def test_which_projection_has_the_highest_layers() -> None:
    content, page = measured()
    highest = []
    for base in content["settings"]["bases"]:
        layers = {
            kind: max(error for _, error in found)
            for kind, found in gradients_of(content, base)["matrices"].items()
        }
        assert max(layers, key=lambda kind: layers[kind]) == "v_proj A"
        highest.append(f"{layers['v_proj A']:.0%}".removesuffix("%"))
    assert f"`v_proj`'s A has the highest single layers ({' and '.join(highest)} %)" in page
