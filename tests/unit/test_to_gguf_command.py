"""The command line of the conversion: what it finds, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from convert.quantise import parse_types
from convert.source import find_source
from convert.to_gguf import main
from core.command import command_line
from core.errors import ConvertError


def make_run(outputs: Path, name: str, age: int = 0) -> Path:
    adapter = outputs / name / "adapter"
    adapter.mkdir(parents=True)
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": "nowhere/at-all"}))
    os.utime(config, (1e9 - age, 1e9 - age))
    return adapter.parent


def test_types_have_short_names_and_each_is_made_once() -> None:
    assert parse_types("q4,q5,Q5_K_M, iq4_xs,f16") == ["Q4_K_M", "Q5_K_M", "IQ4_XS", "F16"]


@pytest.mark.parametrize(
    ("given", "hint"),
    [("q5_km", "did you mean Q5_K_M?"), ("Q9", "choose of q4, q5"), (",", "names no type")],
)
def test_an_unknown_type_is_answered_with_the_nearest(given: str, hint: str) -> None:
    with pytest.raises(ConvertError) as caught:
        parse_types(given)
    assert hint in str(caught.value)


def test_the_newest_run_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, "older", age=100)
    newest = make_run(tmp_path, "newest")
    (newest / "prompts.jsonl").touch()
    assert find_source(None, tmp_path).name == "newest"
    assert find_source(None, tmp_path).prompts == newest / "prompts.jsonl"
    older = find_source("older", tmp_path)
    assert (older.name, older.adapter, older.prompts) == ("older", tmp_path / "older" / "adapter", None)


def test_folders_of_adapters_and_checkpoints_are_taken_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "elsewhere", "mine")
    assert find_source(str(run), tmp_path).name == "mine"
    assert find_source(str(run / "adapter"), tmp_path).name == "mine"
    checkpoint = tmp_path / "a-model"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    found = find_source(str(checkpoint), tmp_path / "outputs")
    assert (found.name, found.checkpoint, found.adapter) == ("a-model", checkpoint, None)
    assert found.folder == tmp_path / "outputs" / "a-model"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 1, "there is no run in outputs/ yet"),
        (["nobody"], 1, "no run or folder is called 'nobody'; runs: none yet"),
        (
            ["model.gguf"],
            1,
            f"is a GGUF already; chat with it: {command_line('app.py', ['--model', 'model.gguf'])}",
        ),
        (["--quant", "q5_km"], 2, "unknown quant 'q5_km'; did you mean Q5_K_M?"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main([*arguments, "--root", str(tmp_path)]) == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1


def test_an_unknown_option_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--quants=q5"])
    assert caught.value.code == 2
    assert (
        "unrecognized arguments: --quants=q5; see python convert/to_gguf.py --help" in capsys.readouterr().err
    )
