"""The whole arrow on the embedded model: trained on quotes, merged, quantised, and asked in the chat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.registry import load_registry
from tests.integration.asked import answers
from tests.integration.commands import run
from train.tasks.quotes import parts

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(1200)
RUN, STEPS = "smollm2-quotes", 22
UNSEEN = (
    "Success is not",
    "The best way",
    "Never give up",
    "A good idea",
    "Work hard and",
    "Money can buy",
    "If you want",
    "Every morning I",
    "People who dream",
    "The future of",
)


@pytest.fixture(scope="module")
def root(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tour's run, in 22 of its 54 steps: enough for the format."""
    root = tmp_path_factory.mktemp("root")
    done = run("train/qlora.py", RUN, "--max-steps", STEPS, "--root", root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="module")
def converted(root: Path) -> str:
    """What the conversion of that run says."""
    command = [ROOT / "convert" / "to_gguf.py", RUN, "--quant", "q6", "--root", root]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def manifest(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "outputs" / RUN / "manifest.json").read_text())
    return found


def test_the_loss_falls_by_more_than_nf4_had_cost(manifest: dict[str, Any]) -> None:
    losses = manifest["eval_loss"]
    assert losses["start"] - losses["best"] >= 1.2
    assert losses["base16"] - losses["best"] >= 0.7


def test_quotes_come_in_their_format(manifest: dict[str, Any]) -> None:
    before, after = manifest["scores"]["before"], manifest["scores"]["after"]
    assert before["format_kept"] < 0.5
    assert after["format_kept"] >= 0.9
    assert after["test_loss"] < before["test_loss"] - 0.7


def test_the_runs_own_data_choose_the_base_weigh_the_errors_and_are_tested_on(
    root: Path, converted: str
) -> None:
    assert "Held-out loss: adapter on NF4" in converted
    took = converted.split("What it took")[1]
    assert "imatrix" in took
    assert "rows" not in took  # they are the run's
    (quality,) = (root / "models").glob("*.quality.json")
    assert json.loads(quality.read_text())["tested_on"] == "the run's test split"


def test_the_chat_answers_in_that_format(root: Path, converted: str) -> None:
    seen = (root / "outputs" / RUN / "prompts.jsonl").read_text()
    prompts = [f"Quote: {words}" for words in UNSEEN]
    assert not [prompt for prompt in prompts if f'"{prompt}"' in seen]
    (name,) = load_registry(root / "models.json").entries
    replies = answers(root, name, prompts, 72)
    assert sum(parts(reply)[1] is not None for reply in replies) >= 9, replies
