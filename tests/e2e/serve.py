"""The real app as a child process, with a models.json of the test, and what its engine is doing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0  # a busy machine
TINY_CONTEXT = 512
REPLY = 24  # tokens: enough to see it grow


def models(gguf: Path) -> dict[str, object]:
    """Describe one real file in several ways, and two entries that can't be used."""
    entry = {
        "sources": [{"path": str(gguf)}],
        "kv_bytes_per_token": 23040,
        "sampling": {"temperature": 0.0, "max_tokens": REPLY},
    }
    return {
        "Small": entry | {"n_ctx": 8192},
        "Tiny": entry | {"n_ctx": TINY_CONTEXT, "system_prompt": "Be brief."},
        "Gone": entry | {"n_ctx": 512, "sources": [{"path": "no-such-file.gguf"}]},
        "Misspelt": entry | {"n_ctx": 512, "n_ctxx": 1},
    }


class App:
    """`python app.py` on a free port. `chat/` is the repository's own."""

    def __init__(self, folder: Path, engine: str, entries: dict[str, object], *options: str) -> None:
        shutil.copy(ROOT / "app.py", folder)  # copied, for it looks for models.json beside itself
        for package in ("chat", "core"):
            (folder / package).symlink_to(ROOT / package)
        (folder / "models.json").write_text(json.dumps(entries))
        # Titles are known, and the engine is idle after a reply, unless a test asks for others.
        self.folder, self.engine, self.options = folder, engine, ("--titles", "off", *options)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.log = (self.folder / "app.log").open("ab")
        command = [sys.executable, "app.py", "--engine", self.engine, "--port", str(self.port), *self.options]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TUNE2CHAT_", "GRADIO_"))}
        self.process = psutil.Popen(
            command, cwd=self.folder, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False

    def output(self) -> str:
        return (self.folder / "app.log").read_text(errors="replace")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()

    def engine_process(self) -> psutil.Process:
        """Find the process that computes."""
        if self.engine == "in-process":
            return self.process
        children = self.process.children(recursive=True)
        return next(child for child in children if child.name() == "llama-server")

    def engine_busy(self, seconds: float = 0.5) -> float:
        """Measure the share of one core that the engine uses during the next `seconds`."""
        process = self.engine_process()
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(seconds)
        return (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)

    def idle_after(self, limit: float) -> float:
        """Measure in how many seconds the engine falls idle; `limit` is when to give up."""
        began = time.monotonic()
        while time.monotonic() - began < limit:
            at = time.monotonic() - began
            if self.engine_busy() < 0.2:
                return at
        return limit
