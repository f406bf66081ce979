"""A copy of the app in a folder of its own, run as a user runs it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 200  # a busy machine with two cores


def copy_app(tmp_path: Path) -> Path:
    """Copy the app, for app.py reads the models.json beside itself."""
    shutil.copy(ROOT / "app.py", tmp_path)
    for package in ("chat", "core"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "models.json", tmp_path)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TUNE2CHAT_", "GRADIO_", "PYTHONWARN"))}
    return clean | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | more


def hear_ctrl_c() -> None:
    """For a process to be: tests that run in a shell's background were told to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class App:
    """app.py, served until it is ended."""

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py", "--port", self.url.rsplit(":", 1)[1], *options],
                cwd=folder,
                env=environment(**variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=hear_ctrl_c,
            )

    def wait_until_it_answers(self) -> str:
        def page() -> str:
            try:
                with urllib.request.urlopen(self.url, timeout=10) as response:
                    return str(response.read().decode())
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                return ""

        return wait_for(page)

    def children(self, name: str) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if child.name() == name]

    def end(self, with_signal: int) -> str:
        self.process.send_signal(with_signal)
        self.process.wait(PATIENCE_S)
        return self.log.read_text()


def wait_for(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
