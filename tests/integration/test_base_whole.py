"""A base on this disk that isn't whole: a line for an option's and a recipe's, and no traceback."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from core.errors import TrainError
from studies.quantised import PLAN, main
from tests.integration.small_runs import small_phi3
from train.base import find_base, fingerprint
from train.recipe import parse
from train.sections import Model
from train.session import Base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_phi3(tmp_path_factory.mktemp("phi3") / "base")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{broken", r"can't read \S+config.json: .*; get the checkpoint again, whole"),
        ("config.json", "[1]", r"config.json is not a JSON object; get the checkpoint again, whole"),
        ("config.json", None, r"--base '\S+' is no checkpoint, as it has no config.json"),
        ("model.safetensors", None, r"--base '\S+' has no weights \(\*.safetensors\); get the checkpoint"),
        ("token*", None, r"--base '\S+' has no tokenizer; get the checkpoint again, whole"),
    ],
)
def test_a_base_that_is_not_whole_is_told_of_in_a_line(
    name: str, content: str | None, said: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a folder is called; a recipe with such a base gets a line, too."""
    folder = Path(shutil.copytree(base, tmp_path / "x.gguf"))
    for path in folder.glob(name):
        path.unlink()
    if content:
        (folder / name).write_text(content)
    with pytest.raises(SystemExit) as left:
        main(["--base", str(folder), "--minutes", "0", "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert re.search(said, printed)
    assert printed.count("\n") == 1
    recipe = parse(PLAN["recipe"] | {"model": {"base_model": str(folder), "license": "x"}}, "test")
    with pytest.raises(TrainError):
        Base(recipe).load(recipe, torch.device("cpu"))
    if content:
        with pytest.raises(TrainError, match=r"config.json.*; get the checkpoint again, whole"):
            fingerprint(str(folder))


def test_a_gguf_that_is_none_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dir.gguf").mkdir()
    for name, said in (("dir.gguf", "is no checkpoint, as it"), ("gone.gguf", "is not there")):
        with pytest.raises(SystemExit):
            main(["--base", str(tmp_path / name)])
        assert f"--base '{tmp_path / name}' {said}" in capsys.readouterr().err
    with pytest.raises(TrainError, match=r"dir.gguf' is a folder, and no GGUF"):
        find_base(Model(base_model=str(tmp_path), gguf_file="dir.gguf", license="x"))
