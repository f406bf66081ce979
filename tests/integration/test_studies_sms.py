"""The study of marketing messages on real libraries and a small real model: arms, extractor, resume."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chat.model_host import Host
from chat.reply import Sessions
from chat.sms import ask_features, likelihood, without_each_word
from core.entry import Entry, Source
from core.errors import ChatError
from core.from_gguf import checkpoint_from_gguf
from core.registry import Registry
from studies.sms import ROOT, SCRIPT, Study
from studies.sms_arms import Arm, recipe_of, split, table, tuned
from train.tasks.make_sms import main as make_csv

MESSAGE = "Lumovi: 20% off tea. Today only!"


@pytest.fixture(scope="module")
def sessions(
    short_model: Path, embedded_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sessions]:
    paths = {"Short": short_model, "Whole": embedded_model}
    entries = {name: Entry(sources=[Source(path=str(path))], n_ctx=1024) for name, path in paths.items()}
    menu = Registry(tmp_path_factory.mktemp("menu") / "models.json", entries)
    with closing(Host(menu, "in-process")) as host:
        yield Sessions(host)


@pytest.fixture(scope="module")
def recipe(short_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on the first layers of the embedded model."""
    folder = tmp_path_factory.mktemp("recipe")
    checkpoint_from_gguf(short_model, folder / "base")
    sft = {"max_length": 256, "per_device_train_batch_size": 1, "max_steps": 2}
    content: dict[str, Any] = {
        "model": {"base_model": str(folder / "base"), "license": "apache-2.0"},
        "data": {"path": "none.csv"},
        "LoraConfig": {"r": 4, "lora_alpha": 8},
        "SFTConfig": sft,
        "waive": ["first_loss"],
    }
    (folder / "short.yaml").write_text(json.dumps(content))  # which is YAML too
    return folder / "short.yaml"


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_an_arm_trains_two_steps_and_checkpointing_changes_only_what_it_costs(
    recipe: Path, tmp_path: Path, bits: int
) -> None:
    csv = tmp_path / "sms.csv"
    assert make_csv(["--out", str(csv), "--rows", "80"]) == 0
    rows = table(80)
    train, tests = split(rows, 1)
    made = []
    for checkpointing in (False, True):
        arm = recipe_of(str(recipe), csv, Arm(bits, checkpointing), 1, 1.0)
        assert arm.fast is not checkpointing
        made.append(tuned(arm, rows, train[:8], tests[:6], tmp_path / "run"))
    for cell in made:
        assert cell["steps"] == 2
        assert len(cell["loss"]) == 2
        assert len(cell["likely"]) == 6
        assert all(0 < p < 1 for p in cell["likely"])
        assert cell["tokens_per_s"] > 0
        assert 0.05 < cell["memory_gb"] < 32
        assert math.isfinite(cell["expected_log_loss"])
    assert made[0]["loss"] == pytest.approx(made[1]["loss"], rel=1e-3)
    assert made[0]["likely"] == pytest.approx(made[1]["likely"], abs=1e-3)
    assert not (tmp_path / "run").exists()


def test_the_models_reading_fills_the_schema_or_its_fault_is_told(sessions: Sessions) -> None:
    whole = ask_features(sessions, "Short", MESSAGE)
    assert (whole.features is None) == bool(whole.fault)
    cut = ask_features(sessions, "Short", MESSAGE, max_tokens=3)
    assert cut.features is None
    assert "cut by its length" in cut.fault
    assert cut.seconds > 0


def test_a_likelihood_is_the_same_again_and_each_word_is_left_out_once(sessions: Sessions) -> None:
    whole = likelihood(sessions, "Whole", MESSAGE)
    assert 0 < whole < 1
    assert likelihood(sessions, "Whole", MESSAGE) == pytest.approx(whole, abs=1e-6)
    words = list(without_each_word(sessions, "Whole", MESSAGE, whole))
    assert [word for word, _ in words] == MESSAGE.split()
    with pytest.raises(ChatError, match="61 words; 60"):
        list(without_each_word(sessions, "Whole", "a " * 61, whole))


def command(*options: str) -> list[str]:
    return [sys.executable, str(ROOT / SCRIPT), *options]


def test_a_wrong_number_and_no_gguf_are_one_line_each(tmp_path: Path) -> None:
    for options, said in (
        (["--train", "3"], "--train 3 is not from 8 to 1,500"),
        (["--model", str(tmp_path / "none.gguf"), "--out", str(tmp_path)], "none.gguf"),
    ):
        ran = subprocess.run(command(*options), capture_output=True, text=True, timeout=120)
        assert ran.returncode == 2
        assert said in ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_study_that_was_interrupted_goes_on(recipe: Path, short_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    sizes = ["--recipe", str(recipe), "--train", "8", "--test", "8", "--asked", "1"]
    options = [*sizes, "--checkpointed-seeds", "0", "--model", str(short_model), "--out", str(out)]
    with subprocess.Popen(command(*options), stdout=subprocess.PIPE, text=True) as begun:
        assert begun.stdout
        for line in begun.stdout:
            if line.startswith("baselines/2"):
                break
        begun.send_signal(signal.SIGINT)
        assert begun.wait(120) == 130
    before = json.loads((out / "results.json").read_text())["cells"]
    assert {"made", "rules", "baselines/1", "baselines/2"} <= set(before)
    assert "tuned/4 bit/3" not in before
    settings = json.loads((out / "results.json").read_text())["settings"]
    with pytest.raises(ChatError, match="another settings"):
        Study(out, settings | {"train": 9}, None)
    study = Study(out, settings, None)  # without a model to chat with, what needs one is left out
    study.do()
    after = study.results.content["cells"]
    assert {key: after[key] for key in before} == before
    assert {f"tuned/{bits} bit/{seed}" for bits in (16, 8, 4) for seed in (1, 2, 3)} <= set(after)
    assert os.listdir(out / "run") == []
