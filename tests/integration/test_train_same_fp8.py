"""The benchmark of FP8 beside 16 bit on a small random model: what a run gives; a command that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.train_same_fp8 import Cell, cells_of, opened, settings_of, trained, write_text
from bench.train_same_fp8_report import AGAIN, BASE16, FP8, NF4, TEXT, TOUR, key_of
from core.errors import TrainError
from tests.integration.commands import run as command
from tests.integration.small_runs import small_phi3

STEPS = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_phi3(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run whose gradients are looked at."""
    text = tmp_path_factory.mktemp("text") / "text.jsonl"
    write_text(text)
    return trained(Cell(TEXT, str(base), NF4, 0, STEPS), text)


def test_no_paragraph_is_in_two_topics(tmp_path: Path) -> None:
    write_text(tmp_path / "text.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "text.jsonl").read_text(encoding="utf-8").splitlines()]
    topics = [row["topic"] for row in rows]
    assert topics == sorted(topics)
    texts: dict[str, str] = {}
    for row in rows:
        texts[row["topic"]] = texts.get(row["topic"], "") + row["text"]
    paragraphs = [part for text in texts.values() for part in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) > 1000


def test_gradients_in_fp8_are_near_those_of_the_same_weights(run: dict[str, Any]) -> None:
    assert len(run["losses"]) == STEPS
    assert run["held out"].keys() == {"0", str(STEPS)}
    matrices, whole = run["gradients"]["matrices"], run["gradients"]["all"]
    assert matrices.keys() == {
        f"{name}_proj {side}" for name in ("qkv", "o", "gate_up", "down") for side in "AB"
    }
    assert all(len(layers) == 2 for layers in matrices.values())
    cosine, error = whole[FP8]
    assert cosine > 0.9  # random weights make more of an error than trained ones
    assert 0.01 < error < 0.5 < whole["another batch"][1]


def test_each_base_has_all_arms_and_the_first_one_the_tour() -> None:
    cells = cells_of(["a", "b"], [NF4, AGAIN], [0, 1], STEPS)
    found = [(cell.study, cell.base, cell.arm, cell.seed) for cell in cells]
    assert len(set(found)) == len(found) == 8
    assert (TEXT, "b", AGAIN, 0) in found
    assert (TEXT, "b", AGAIN, 1) not in found
    assert [each for each in found if each[0] == TOUR] == [(TOUR, "a", NF4, 0), (TOUR, "a", NF4, 1)]


def test_the_command_does_what_is_missing(
    base: Path, run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs in FP8 fail where there is no GPU, and cost no other."""
    out = tmp_path / "same.json"
    kept = {key_of(TEXT, "tiny", NF4, 0): run, key_of(TOUR, "tiny", NF4, 0): run | {"scores": {}}}
    settings = settings_of([str(base)], STEPS) | {"device": "CPU"}
    out.write_text(json.dumps({"settings": settings, "runs": kept}))
    given = ("--steps", STEPS, "--processes", 1, "--seeds", 0, "--arms", BASE16, NF4, FP8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = command("bench/train_same_fp8.py", base, "--out", out, *given)
    assert done.returncode == 1, done.stderr
    assert "text/tiny/NF4, FP8/0: precision: fp8 is for the fused kernels" in done.stderr
    runs = json.loads(out.read_text())["runs"]
    assert runs.items() >= kept.items()
    assert runs.keys() == kept.keys() | {key_of(study, "tiny", BASE16, 0) for study in (TEXT, TOUR)}
    assert {"test_loss", "format_kept"} <= runs[key_of(TOUR, "tiny", BASE16, 0)]["scores"].keys()
    assert f"| tiny | NF4 | {run['held out']['0']:.4f} |" in done.stdout
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert opened(out, settings)["runs"] == runs
    with pytest.raises(TrainError, match="was measured with"):
        opened(out, settings | {"steps": STEPS + 1})
