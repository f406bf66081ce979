"""Runs on real tokenizers that are refused before their first step, and what they leave behind."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from bench.train_models import CONFIGS
from core.command import command_line
from core.errors import TrainError
from tests.integration.small_runs import recipe_of, write_chats
from tests.integration.tiny_models import tiny
from train import qlora
from train.fine_tune import print_plan, train_run
from train.folder import BEFORE, MANIFEST, RECIPE, claimed, read_json
from train.recipe import RECIPES, Recipe

SEEDS_TARGETS = ["k_proj", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
QUICK = {"max_steps": 1, "eval_steps": 1}


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Phi-3.5: fused layers, the real vocabulary and template."""
    return tiny("phi3", tmp_path_factory.mktemp("phi") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl", 40)


def refusal(recipe: Recipe, outputs: Path, resume: bool = False) -> str:
    with pytest.raises(TrainError) as caught:
        train_run(recipe, outputs, resume)
    return str(caught.value)


def test_the_seeds_settings_are_refused_all_at_once(phi: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        phi,
        RECIPES / "quotes.jsonl",
        data={"task": "quotes", "format": "text"},
        lora={"target_modules": SEEDS_TARGETS},
        sft={"lr_scheduler_type": "constant", "warmup_ratio": 0.3, "max_steps": 10},
        waive=[],
    )
    said = refusal(recipe, tmp_path)
    assert "k_proj, q_proj, v_proj, gate_proj, up_proj match nothing in this model" in said
    assert "there are: down_proj, gate_up_proj, o_proj, qkv_proj" in said
    assert "'constant' ignores the warm-up" in said
    assert "row 1 trains 0 stop tokens in 1 turns" in said
    assert len(said.splitlines()) == 1 + 3
    assert not list(tmp_path.iterdir())


def test_a_faithful_twin_waives_them_and_trains(
    phi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waive = ["unmatched_targets", "untrained_stop", "warmup", "first_loss"]
    recipe = recipe_of(
        phi,
        RECIPES / "quotes.jsonl",
        data={"task": "quotes", "format": "text", "limit": 40},
        lora={"target_modules": SEEDS_TARGETS},
        sft=QUICK | {"lr_scheduler_type": "constant", "warmup_ratio": 0.9},
        waive=waive,
    )
    folder = train_run(recipe, tmp_path, False)
    printed = capsys.readouterr()
    for name in waive:
        assert (printed.out + printed.err).count(f"waived ({name}): ") == 1
        assert name in (folder / MANIFEST).read_text()


def test_a_run_that_was_refused_may_begin_again_corrected(phi: Path, data: Path, tmp_path: Path) -> None:
    wrong = recipe_of(phi, data, sft=QUICK | {"learning_rate": 2e-4}, waive=[])
    said = refusal(wrong, tmp_path)
    assert "the loss before the first step is" in said
    assert "with their tokens in no order; a base that reads them stays below 80% of it" in said
    assert "waive: [first_loss]" in said
    assert not (tmp_path / "run" / BEFORE).exists()
    folder = train_run(recipe_of(phi, data, sft=QUICK), tmp_path, False)
    assert (folder / MANIFEST).is_file()
    assert "holds a run already" in refusal(recipe_of(phi, data, sft=QUICK), tmp_path)


def test_two_programs_in_one_folder(phi: Path, data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(phi, data, sft=QUICK)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert "another program is training in" in refusal(recipe, tmp_path)
        assert not (tmp_path / "run" / RECIPE).exists()
    with claimed(tmp_path / "run", recipe, False):
        said = refusal(recipe.model_copy(update={"description": "another"}), tmp_path)
        assert "another program is training in" in said
        assert "another" not in (tmp_path / "run" / RECIPE).read_text()


@pytest.mark.parametrize(
    ("data_options", "said"),
    [
        ({"validation": 0.9, "test": 0.099}, "the train split is empty"),
        ({"limit": 1, "validation": 0.5, "test": 0.499}, "the train split is empty"),
    ],
)
def test_splits_without_rows(
    data_options: dict[str, Any], said: str, phi: Path, data: Path, tmp_path: Path
) -> None:
    assert said in refusal(recipe_of(phi, data, data=data_options), tmp_path)


def test_rows_that_are_all_too_long(phi: Path, data: Path, tmp_path: Path) -> None:
    said = refusal(recipe_of(phi, data, sft={"max_length": 8}), tmp_path)
    assert "are longer than max_length, 8 tokens" in said
    assert "raise SFTConfig.max_length" in said


def test_a_base_for_a_gpu_is_refused_and_planned(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU to train it on")
    base = tiny("phi3", tmp_path / "base")
    (base / "model.safetensors").unlink()
    CONFIGS["microsoft/Phi-3.5-mini-instruct"].save_pretrained(base)
    recipe = recipe_of(base, data, lora={"r": 8})
    said = refusal(recipe, tmp_path / "outputs")
    assert "has 3.8 billion parameters and this machine has no CUDA GPU" in said
    assert not (tmp_path / "outputs").exists()
    print_plan(recipe)
    assert "12,582,912 of 3,821,079,552 parameters are trained (0.33%)" in capsys.readouterr().out


def test_one_row_trains_by_options_alone(
    phi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_chats(tmp_path / "one row.jsonl", 1)
    options = ["--data", data, "--model", phi, "--root", tmp_path, "--name", "it's one", "--max-steps", "1"]
    more = ["--set", "SFTConfig.seed=4294967295", "--set", "SFTConfig.warmup_ratio=0"]
    arguments = [str(argument) for argument in [*options, *more]]
    assert qlora.main(arguments) == 1  # the base is random
    assert "--waive first_loss" in capsys.readouterr().err
    assert qlora.main([*arguments, "--waive", "first_loss"]) == 0
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert "note: no validation split, as 1 rows in 1 group" in said
    assert "note: no test split, as 1 rows in 1 group" in said
    assert f"--try 'it'\"'\"'s one' --root {tmp_path}" in said
    folder = tmp_path / "outputs" / "it's one"
    assert read_json(folder / MANIFEST)["data"]["rows"] == {"train": 1, "validation": 0, "test": 0}
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert "red" in (folder / "samples.md").read_text() or "blue" in (folder / "samples.md").read_text()


def test_a_folder_that_cant_be_written_says_how_to_go_on(
    phi: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file may get larger than 64 kB: a disk that is full, as far as a program can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, before[1]))
    try:
        options = ["--data", data, "--model", phi, "--root", tmp_path, "--name", "run", "--max-steps", 1]
        arguments = [*map(str, options), "--waive", "first_loss"]
        assert qlora.main(arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert f"is left for {tmp_path / 'outputs' / 'run'} (" in said
    line = said.rpartition("go on with: ")[2].strip()
    assert line == command_line("train/qlora.py", [*arguments, "--resume"])
    assert qlora.main([*arguments, "--resume"]) == 0
