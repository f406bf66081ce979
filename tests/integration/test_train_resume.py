"""A run that is stopped at any moment goes on as if it never had been: the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from core.command import command_line
from core.errors import TrainError
from tests.integration.commands import Command
from tests.integration.small_runs import NF4, adapter_of, metrics_of, recipe_of, small_phi3, write_chats
from train.evaluation import evaluate
from train.fine_tune import answer, train_run
from train.folder import dump, read_metrics
from train.recipe import Recipe, changed

ROOT = Path(__file__).resolve().parents[2]
LOSSES = ("step", "loss", "grad_norm", "eval_loss")
# An epoch has about 12 steps, the run 20.
SFT = {
    "max_steps": 20,
    "eval_steps": 5,
    "logging_steps": 1,
    "warmup_steps": 4,
    "gradient_accumulation_steps": 2,
    "max_length": 96,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("small")
    data = write_chats(folder / "chats.jsonl", 90)
    lora = {"lora_dropout": 0.2}
    return recipe_of(small_phi3(folder / "base"), data, sft=SFT, lora=lora, BitsAndBytesConfig=NF4)


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a break."""
    return train_run(recipe, tmp_path_factory.mktemp("whole"), False)


def same_run(one: Path, other: Path) -> None:
    """Equal in adapter, learning rates, losses and norms; a line of the log may come twice, as two parts."""
    for name, tensor in adapter_of(one).items():
        assert torch.equal(tensor, adapter_of(other)[name]), name
    assert metrics_of(one, *LOSSES, "lr", "tokens") == metrics_of(other, *LOSSES, "lr", "tokens")


@contextmanager
def ctrl_c_after(folder: Path, step: int) -> Iterator[None]:
    """Send this process a Ctrl-C as soon as the run in `folder` has logged `step`."""
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if (folder / "metrics.jsonl").is_file() and (step,) in metrics_of(folder, "step"):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_run_crosses_an_epochs_border(whole: Path) -> None:
    epochs = [epoch for (epoch,) in metrics_of(whole, "epoch") if epoch]
    assert epochs[0] < 1 < epochs[-1]


@pytest.mark.parametrize("step", [1, 7, 17])
def test_stopped_and_resumed_is_the_same_as_never_stopped(
    step: int, recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with ctrl_c_after(folder, step), pytest.raises(KeyboardInterrupt):
        train_run(recipe, tmp_path, False)
    assert (folder / "checkpoint").is_dir()
    assert step <= len([loss for (loss,) in metrics_of(folder, "loss") if loss]) < 20
    train_run(recipe, tmp_path, True)
    same_run(folder, whole)
    train_run(recipe, tmp_path, True)  # what has ended stays as it is
    same_run(folder, whole)


def test_ctrl_c_between_two_lines_of_the_log_loses_no_step(recipe: Recipe, tmp_path: Path) -> None:
    sft = recipe.sft.model_copy(update={"logging_steps": 8, "eval_steps": 10})
    recipe = recipe.model_copy(update={"sft": sft})
    with ctrl_c_after(tmp_path / "run", 8), pytest.raises(KeyboardInterrupt):
        train_run(recipe, tmp_path, False)
    train_run(recipe, tmp_path, True)
    steps = [step for step, loss in metrics_of(tmp_path / "run", "step", "loss") if loss]
    assert steps[0] == 8
    assert steps[1] > 8  # where it was stopped
    assert {10, 16, 20} <= set(steps)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_goes_on_after(stop: signal.Signals, recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(dump(recipe))
    command = ("train/qlora.py", tmp_path / "run.yaml", "--root", tmp_path)
    folder = tmp_path / "outputs" / "run"
    for _ in range(5):  # a busy machine may not look at it between the eighth step and the last
        shutil.rmtree(folder, ignore_errors=True)
        process = Command(*command)
        while process.returncode is None:
            if (folder / "metrics.jsonl").is_file() and (8,) in metrics_of(folder, "step"):
                process.send_signal(stop)
                break
            time.sleep(0.002)
        process.wait(60)
        if not (folder / "manifest.json").exists():
            break
    assert not (folder / "manifest.json").exists(), "it was done before it was stopped"
    assert (folder / "checkpoint").is_dir()
    if stop != signal.SIGKILL:
        assert process.returncode == 130, process.stderr
        assert "Traceback" not in process.stderr
        line = process.stderr.rpartition("Go on with: ")[2].strip()
        assert line == command_line(command[0], [*command[1:], "--resume"])
    again = train_run(recipe, tmp_path / "outputs", True)
    same_run(again, whole)


def test_a_folder_that_is_used_is_refused(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"holds a run already; go on with it: --resume"):
        train_run(recipe, whole.parent, False)
    other = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"r": 8})})
    with pytest.raises(TrainError, match=r"another recipe \(LoraConfig\.r: 4\); --name"):
        train_run(other, whole.parent, True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("Dear all")
    with pytest.raises(TrainError, match="is in use for something else"):
        train_run(recipe, tmp_path, True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("inputs.json", "{broken", r"inputs\.json is damaged \(Invalid JSON.*or move it away"),
        ("inputs.json", "[1]", r"inputs\.json is damaged .*or move it away"),
        ("before.json", "[1]", r"before\.json is damaged .*or move it away"),
        ("before.json", "{}", r"before\.json is damaged \(prompts: Field required\).*or move it away"),
        ("checkpoint/progress.json", "\xff", r"progress\.json is damaged .*or move \S+checkpoint away"),
        ("checkpoint/progress.json", '{"step": 1}', r"damaged \(processes: .*or move \S+checkpoint away"),
    ],
)
def test_a_damaged_file_of_a_run_is_told_of_with_its_cure(
    name: str, text: str, said: str, recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(TrainError, match=said):
        train_run(recipe, tmp_path, True)
    if not name.startswith("checkpoint"):
        with pytest.raises(TrainError, match=said):
            answer(folder, None)
    (folder / name.partition("/")[0]).rename(tmp_path / "away")  # the cure
    same_run(train_run(recipe, tmp_path, True), whole)


def test_lines_of_metrics_that_hold_no_figures_are_left_out(whole: Path, tmp_path: Path) -> None:
    lines = (whole / "metrics.jsonl").read_bytes()
    broken = b'[1]\n{"loss": 1}\n{"step": "1"}\n{"step": 1, "loss": "x"}\n\xff\n{"step": 1, "lo'
    (tmp_path / "metrics.jsonl").write_bytes(lines + broken)
    assert read_metrics(tmp_path) == read_metrics(whole) != []


def test_other_content_under_the_same_names_is_refused(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    """And the same content under other names is gone on with."""
    outputs = tmp_path / "outputs"
    shutil.copytree(whole, outputs / "run")
    base = Path(shutil.copytree(recipe.model.base_model, tmp_path / "base"))
    data = Path(shutil.copy(recipe.data.path, tmp_path / "renamed.jsonl"))
    moved = changed(recipe, {"data.path": str(data), "model.base_model": str(base)}, "test")
    same_run(train_run(moved, outputs, True), whole)

    before = data.read_bytes()
    data.write_bytes(before.replace(b"red fox", b"red ox "))
    with pytest.raises(TrainError, match=r"was begun on other content of the data \(.*renamed\.jsonl\)"):
        train_run(moved, outputs, True)
    data.write_bytes(before)

    weights = base / "model.safetensors"
    content, about = bytearray(weights.read_bytes()), weights.stat()
    content[-2] ^= 1  # of the last weight
    weights.write_bytes(content)
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(TrainError, match=r"was begun on other content of the base \(.*base\)"):
        train_run(moved, outputs, True)
    with pytest.raises(TrainError, match=r"base has other content than when 'run' was trained on it"):
        answer(outputs / "run", "Hello")


def test_a_template_that_writes_the_date_goes_on_the_next_day(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(recipe.model.base_model, tmp_path / "base"))
    template = base / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y %H:%M') }}" + template.read_text())
    steps = {"SFTConfig.max_steps": 2, "SFTConfig.eval_steps": 2, "SFTConfig.warmup_steps": 0}
    dated = changed(recipe, {"model.base_model": str(base), **steps}, "test")
    folder = train_run(dated, tmp_path, False)
    prompts = (folder / "prompts.jsonl").read_bytes()

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(days=1)

    monkeypatch.setattr("core.template.datetime", Tomorrow)
    monkeypatch.setattr("core.tokenizer.datetime", Tomorrow)
    train_run(dated, tmp_path, True)
    assert (folder / "prompts.jsonl").read_bytes() == prompts
    later = train_run(dated.model_copy(update={"name": "later"}), tmp_path, False)
    first, second = (json.loads((run / "inputs.json").read_text()) for run in (folder, later))
    assert first["base"] == second["base"]
    assert first["data"] != second["data"]  # a run that begins then is told of that day


def test_a_checkpoint_is_kept_between_evaluations(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    often = changed(recipe, {"save_minutes": 1e-6, "SFTConfig.eval_steps": 20}, "test")
    saved = tmp_path / "run" / "checkpoint" / "progress.json"
    seen: list[int] = []

    def watch() -> None:
        while not (tmp_path / "run" / "manifest.json").exists():
            with suppress(OSError, ValueError):
                seen.append(json.loads(saved.read_text())["step"])
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    train_run(often, tmp_path, False)
    thread.join()
    assert set(seen) & set(range(1, 20))
    losses = [line for line in metrics_of(tmp_path / "run", "step", "loss") if line[1]]
    assert losses == [line for line in metrics_of(whole, "step", "loss") if line[1]]


def test_a_stop_during_an_evaluation_doesnt_wait_for_it(
    recipe: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def cut(adapted: Any, *given: Any) -> float:
        found = evaluate(adapted, *given)
        if callable(given[-1]):  # the loop's own
            batches.append(1)
            if len(batches) == 3:  # the start, step 5, step 10
                os.kill(os.getpid(), signal.SIGTERM)
                given[-1]()
        return found

    with monkeypatch.context() as patch:
        patch.setattr("train.sft.evaluate", cut)
        with pytest.raises(KeyboardInterrupt):
            train_run(recipe, tmp_path, False)
    state = json.loads((tmp_path / "run" / "checkpoint" / "progress.json").read_text())
    assert (state["step"], state["evaluated"]) == (10, 5)
    same_run(train_run(recipe, tmp_path, True), whole)


def test_resuming_where_nothing_was_begun_begins(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    same_run(train_run(recipe, tmp_path, True), whole)
