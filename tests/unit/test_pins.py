"""pyproject.toml is the one place for the pins; the requirements files have the same packages and pins."""

from __future__ import annotations

import tomllib

import pytest

from scripts.setup_env import OLDEST
from tests.pins import FILES, ROOT, names, pinned, pins


@pytest.mark.parametrize("file", FILES)
def test_a_requirements_file_has_the_pins_of_the_project(file: str) -> None:
    assert names(file) == sorted(names(file), key=str.lower) or file == "requirements.txt"
    assert set(names(file)) == set(pins(FILES[file])), "a package is in one of the two only"
    assert pinned(file) == (ROOT / file).read_text(), "run: .venv/bin/python -m tests.pins"


def test_training_brings_what_conversion_needs() -> None:
    assert {*names("convert/requirements.txt")} < {*names("train/requirements.txt")}


def test_the_project_says_what_python_it_runs_on_as_its_set_up_does() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, OLDEST))
    assert (ROOT / project["readme"]).is_file()
    assert all((ROOT / name).is_file() for name in project["license-files"])
