"""A package that isn't installed is named in one line; a module of our own that is missing is a bug."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.command import run

ROOT = Path(__file__).resolve().parents[2]
# Those that need a package before they have read their options, with options that are right.
SCRIPTS = {
    "app.py": [],
    "train/data.py": ["a-recipe"],
    "train/qlora.py": ["a-recipe"],
    "train/robustness.py": ["a-run"],
    "train/sweep.py": ["a-sweep"],
    "convert/from_gguf.py": ["a.gguf", "--out", "a-folder"],
    "convert/merge.py": ["a-run"],
    "publish/space.py": ["me/chat"],
}


def test_a_package_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")

    assert run(work, "") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the package 'torch' isn't installed: pip install -r requirements.txt")
    assert said.count("\n") == 1


def test_a_module_of_our_own_is_a_bug() -> None:
    def work() -> int:
        raise ModuleNotFoundError("No module named 'train.nothing'", name="train.nothing")

    with pytest.raises(ModuleNotFoundError, match=r"train\.nothing"):
        run(work, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_the_packages_a_command_says_which_one_it_lacks(script: str) -> None:
    command = [sys.executable, "-S", str(ROOT / script), *SCRIPTS[script]]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1), ran.stderr
    assert re.match(r"error: .*'\w+' is(n't| not) installed", ran.stderr)
