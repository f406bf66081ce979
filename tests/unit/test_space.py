"""What a Hugging Face Space asks of the app, by the variables that it sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chat import cli, space

ROOT = Path(__file__).resolve().parents[2]


def test_a_space_is_served_on_every_address_and_a_computer_on_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TUNE2CHAT_HOST", "GRADIO_SERVER_NAME", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    assert cli.parse([]).host is None
    monkeypatch.setenv("SPACE_ID", "someone/chat")
    assert cli.parse([]).host == "0.0.0.0"
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.2")
    assert cli.parse([]).host == "127.0.0.2"
    assert cli.parse(["--host", "127.0.0.1"]).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("value", "is_one"), [("true", True), ("1", True), ("T", True), ("", False), ("0", False), ("no", False)]
)
def test_zero_gpu_is_recognised_as_spaces_does(
    monkeypatch: pytest.MonkeyPatch, value: str, is_one: bool
) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", value)
    assert space.zero_gpu() == is_one
    assert bool(space.note()) == is_one


@pytest.mark.parametrize("zero_gpu", [False, True])
def test_spaces_is_wanted_on_a_zero_gpu_space_only(tmp_path: Path, zero_gpu: bool) -> None:
    # A package of this name that tells when it is imported, and by whom.
    (tmp_path / "spaces.py").write_text("print('imported')\nGPU = lambda f: print('decorated', f.__name__)\n")
    code = "from chat import space; space.register_gpu_function()"
    variables = {"PYTHONPATH": str(tmp_path), "SPACES_ZERO_GPU": "true" if zero_gpu else "false"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == (["imported", "decorated", "gpu"] if zero_gpu else [])


def test_a_zero_gpu_space_without_the_package_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(SystemExit, match="1"):
        cli.on_a_space()
    said = capsys.readouterr().err
    assert said.startswith("error: SPACES_ZERO_GPU is set")
    assert "pip install spaces" in said
