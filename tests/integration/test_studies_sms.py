"""The study of marketing messages on real libraries and a small real model: arms, extractor, resume."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.cells import FILE, claimed
from chat.model_host import Host
from chat.reply import Sessions
from chat.sms import ask_features, likelihood, without_each_word
from core.command import ROOT
from core.entry import Entry, Source
from core.errors import ChatError
from core.from_gguf import checkpoint_from_gguf
from core.registry import Registry
from studies.sms import STUDY, Plan, main, tune
from tests.integration.elsewhere import endpoints, opened
from tests.integration.openai_app import KEY, NAME, end, serve
from tests.integration.stranger import EVENTS, Answer, Stranger, event, models

SETTINGS: dict[str, Any] = {"recipe": "smollm2-quotes", "train": 8, "test": 8, "epochs": 1.0, "batch": 1}
SETTINGS |= {"rates": [2e-4], "checkpointed_seeds": 0, "rows": 2000}
MESSAGE = "Lumovi: 20% off tea. Today only!"
GOOD: dict[str, Any] = dict.fromkeys(("call_to_action", "personal", "emoji", "opt_out", "link"), False)
GOOD |= {"discount": "percent", "size": 20, "currency": "none", "deadline": True}


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
    plan = Plan(str(recipe), 8, 6, 1.0, 1, [1e-3], 0, rows=80)
    made = []
    for arm in (f"{bits} bit", f"{bits} bit, checkpointing"):
        of_arm = plan.recipe_of(arm, 1, 1e-3)
        assert of_arm.fast is ("checkpointing" not in arm)
        held = of_arm.bnb and {8: of_arm.bnb.load_in_8bit, 4: of_arm.bnb.load_in_4bit}[bits]
        assert held is (None if bits == 16 else True)
        assert of_arm.sft.seed == 1
        made.append(tune(plan, tmp_path, arm, 1, 1e-3))
    for cell in made:
        assert cell["steps"] == 2
        assert len(cell["loss"]) == 2
        assert len(cell["likely"]) == len(cell["converted"]) == 6
        assert all(0 < p < 1 for p in cell["likely"])
        assert cell["tokens_per_s"] > 0
        assert 0.05 < cell["memory_gb"] < 32
        assert math.isfinite(cell["expected_log_loss"])
    assert made[0]["loss"] == pytest.approx(made[1]["loss"], rel=1e-3)
    assert made[0]["likely"] == pytest.approx(made[1]["likely"], abs=1e-3)
    assert os.listdir(tmp_path / "run") == []
    looked = tune(plan, tmp_path, f"{bits} bit", 1, 1e-3, looking=True)
    assert looked["likely"] != made[0]["likely"]


def test_the_models_reading_fills_the_schema_or_its_fault_is_told(sessions: Sessions) -> None:
    whole = ask_features(sessions, "Short", MESSAGE)
    assert (whole.features is None) == bool(whole.fault)
    cut = ask_features(sessions, "Short", MESSAGE, max_tokens=3)
    assert cut.features is None
    assert "cut by its length" in cut.fault
    assert cut.seconds > 0


def test_a_model_elsewhere_is_held_to_the_schema_by_any_api_like_openais(tmp_path: Path) -> None:
    app = serve(tmp_path, "in-process")  # our own, which is such an API
    try:
        with opened([app.url], [KEY]) as host:
            there = Sessions(host)
            assert endpoints(host)[0].kind == "OpenAI's API"
            found = ask_features(there, NAME, MESSAGE)
            with pytest.raises(ChatError, match="answers neither 'yes' nor 'no'"):
                likelihood(
                    there, NAME, MESSAGE
                )  # such an API tells of 20 tokens, and these aren't among them
    finally:
        end(app)
    assert found.features


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ('{"discount": "percent"}', "doesn't fit the JSON schema"),
        ("A lovely message.", "is no JSON"),
        ('{"discount": "percent", "siz', "is no JSON"),
        (GOOD | {"size": -1}, "doesn't fit the JSON schema: size: -1 is less than the minimum of 0"),
        (GOOD | {"price": 3}, "doesn't fit the JSON schema"),
        (GOOD, ""),
    ],
)
def test_an_engine_that_heeds_no_schema_is_counted(said: str | dict[str, Any], fault: str) -> None:
    text = said if isinstance(said, str) else json.dumps(said)

    def answer(body: Any) -> Answer:
        assert body["response_format"]["json_schema"]["schema"]["properties"].keys() == GOOD.keys()
        delta = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
        return 200, EVENTS, [event({"choices": [delta]}), b"data: [DONE]\n\n"]

    with Stranger(v1_models=models("m"), v1_chat_completions=answer) as there, opened([there.url]) as host:
        found = ask_features(Sessions(host), "m", MESSAGE)
    assert fault in found.fault
    assert (found.features is None) == bool(fault)


def test_a_likelihood_is_the_same_again_and_each_word_is_left_out_once(sessions: Sessions) -> None:
    whole = likelihood(sessions, "Whole", MESSAGE)
    assert 0 < whole < 1
    assert likelihood(sessions, "Whole", MESSAGE) == pytest.approx(whole, abs=1e-6)
    words = list(without_each_word(sessions, "Whole", MESSAGE, whole))
    assert [word for word, _ in words] == MESSAGE.split()
    with pytest.raises(ChatError, match="61 words; 60"):
        list(without_each_word(sessions, "Whole", "a " * 61, whole))


def command(*options: str) -> list[str]:
    return [sys.executable, str(ROOT / STUDY.script), *options]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train", "3"], "--train: 3 is not from 8 to 1,500"),
        (["--test", "few"], "--test: 'few' is no number"),
        (["--rates", "0"], "--rates: 0 is not from 1e-08 to 1"),
        (["--model", "none.gguf"], "none.gguf"),
        (["--engine", "http://127.0.0.1:1"], "no engine can be used: http://127.0.0.1:1"),
        (["--engine", "ftp://somewhere"], "it has the form http://HOST:PORT"),
        (["--engine", "nonsense"], "unknown engine 'nonsense'"),
        (["--epochs", "nan"], "--epochs: nan is not from 0.01 to 100"),
        (["--epochs", "0"], "--epochs: 0 is not from 0.01 to 100"),
        (["--batch", "0"], "--batch: 0 is not from 1 to 64"),
        (["--full-size"], "--full-size: PyTorch sees no CUDA GPU here"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*options, "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("named", ["nosuch", "README.md", "/", "smollm2-quotes-dpo"])
def test_a_wrong_recipe_is_told_of_before_anything_is_measured(
    named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--only", "tuned", "--recipe", named, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {}},
        *({"settings": SETTINGS | more} for more in ({"tea": 1}, {"train": "9"}, {"rates": []})),
        *({"cells": {"chat_made": cell}} for cell in ({}, None, "a model")),
        {"cells": {"rate/0.1": {}}},
    ],
)
def test_a_damaged_file_is_not_gone_on_with(
    changed: dict[str, Any], short_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"version": STUDY.version, "settings": SETTINGS, "cells": {}} | changed
    (tmp_path / FILE).write_text(json.dumps(content))
    assert main(["--only", "chat", "--model", str(short_model), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"error: {tmp_path / FILE} is damaged: " in error
    assert "Move it away, or give another folder: --out FOLDER" in error
    assert json.loads((tmp_path / FILE).read_text()) == content


def test_a_folder_in_which_another_process_measures_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(tmp_path):
        assert main(["--only", "tuned", "--out", str(tmp_path)]) == 1
    assert "another process measures in " in capsys.readouterr().err
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("study", ["sms", "quantised"])
def test_ctrl_c_while_packages_are_imported_is_one_line(study: str, tmp_path: Path) -> None:
    begun = psutil.Popen(
        [sys.executable, str(ROOT / "studies" / f"{study}.py"), "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not any("libtorch" in each.path for each in begun.memory_maps()):
        time.sleep(0.02)
    begun.send_signal(signal.SIGINT)
    error = begun.communicate(timeout=60)[1]
    assert (begun.returncode, error) == (130, "\nStopped; nothing was begun.\n")


def test_a_study_that_was_interrupted_goes_on(
    recipe: Path, short_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    sizes = ["--recipe", str(recipe), "--test", "8", "--checkpointed-seeds", "0", "--out", str(out)]
    tuned = [*sizes, "--only", "tuned"]
    with subprocess.Popen(command(*tuned, "--train", "8"), stdout=subprocess.PIPE, text=True) as begun:
        assert begun.stdout
        for line in begun.stdout:
            if line.startswith("tuned/16 bit/1"):
                break
        begun.send_signal(signal.SIGINT)
        assert begun.wait(120) == 130
    before = json.loads((out / FILE).read_text())["cells"]
    assert {"made", "rules", "baselines/3", "tuned/16 bit/1"} <= set(before)
    assert "tuned/4 bit/3" not in before
    assert main([*tuned, "--train", "9"]) == 1
    assert "other settings (train 8, and now 9)" in capsys.readouterr().err
    assert main([*tuned, "--train", "8"]) == 0
    after = json.loads((out / FILE).read_text())["cells"]
    assert {key: after[key] for key in before} == before
    assert {f"tuned/{bits} bit/{seed}" for bits in (16, 8, 4) for seed in (1, 2, 3)} <= set(after)
    assert os.listdir(out / "run") == []
    # What needs the chat comes later, on whichever machine, with the settings that are there.
    chat = ["--only", "chat", "--asked", "1", "--out", str(out), "--model"]
    assert main([*chat, str(short_model)]) in (0, 1)  # two layers may know neither label
    found = json.loads((out / FILE).read_text())["cells"]
    assert {key: found[key] for key in after} == after
    assert {"chat_made", "asked/0"} <= set(found)
    renamed = short_model.with_name("Other.gguf")
    renamed.symlink_to(short_model)
    capsys.readouterr()
    assert main([*chat, str(renamed)]) == 1
    assert f"begun with the model {found['chat_made']['model']}, and this is Other" in (
        err := capsys.readouterr().err
    )
    assert f"Choose --model {found['chat_made']['model']}, or give another folder" in err


def test_cells_of_another_device_are_not_added(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--train", "8", "--test", "8"]
    given = ["--recipe", str(recipe), "--only", "tuned", *sizes, "--out", str(tmp_path)]
    assert main([*given, "--minutes", "0"]) == 0
    content = json.loads((tmp_path / FILE).read_text())
    assert list(content["cells"]) == ["made"]
    content["cells"]["made"]["device"] = "a GPU"
    (tmp_path / FILE).write_text(json.dumps(content))
    assert main(given) == 1
    assert "was begun with the device a GPU, and this is" in capsys.readouterr().err
