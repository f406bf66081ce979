"""A package that isn't installed is named in one line; a module of our own that is missing is a bug."""

from __future__ import annotations

import pytest

from chat.command import run


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
