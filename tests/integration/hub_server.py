"""A server on loopback that speaks as much of the hub's protocol as downloads need, and who asks it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "a" * 40
CONTENT = random.Random(0).randbytes(12_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SOURCE = {"repo_id": "someone/Tiny-GGUF", "filename": "tiny-Q4_K_M.gguf"}

# huggingface_hub reads its settings when it is imported, so each download has a Python of its own.
DRIVER = """
import json, resource, sys
from pathlib import Path
from core.download import download
from core.entry import Source, parse_entry
from core.errors import ChatError
from core.registry import Registry

source, stop_at, limit = json.loads(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
seen = []
try:
    path = download(
        Source(**source),
        lambda done, total: (seen.append((done, total)), print(done, file=sys.stderr, flush=True)),
        lambda: stop_at is not None and bool(seen) and seen[-1][0] >= stop_at,
    )
    entry = parse_entry({"sources": [source], "n_ctx": 512})
    answer = {"path": str(path), "located": str(Registry(Path("models.json")).locate(entry))}
except ChatError as error:
    answer = {"error": str(error)}
print(json.dumps(answer | {"seen": seen}))
"""


class Hub(ThreadingHTTPServer):
    """What the hub answers, and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, str | None]] = []
        self.errors: dict[str, tuple[int, str]] = {}  # method -> status and X-Error-Code
        self.declared_size = len(CONTENT)
        self.content = CONTENT
        self.files: dict[str, bytes] = {}  # others, by name
        self.drops: list[int] = []  # cut the next connections after so many bytes
        self.pause_s = 0.0  # between 256 KiB
        self.is_hub = True

    def asked_for(self, path: str) -> tuple[bytes, int, str]:
        """Content, declared size and hash of the file that `path` leads to."""
        for name, content in self.files.items():
            if path.endswith(f"/{name}"):
                return content, len(content), hashlib.sha256(content).hexdigest()
        return self.content, self.declared_size, SHA256

    @property
    def ranges(self) -> list[str | None]:
        return [value for method, _, value in self.asked if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        if self._begin():
            self.send_response(200)
            self.send_header("X-Linked-Size", str(self.server.asked_for(self.path)[1]))
            self._end()

    def do_GET(self) -> None:
        if not self._begin():
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        content = self.server.asked_for(self.path)[0]
        body = content[start:]
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self._end()
        if self.server.drops:
            body = body[: self.server.drops.pop(0)]
        with suppress(ConnectionError):
            for at in range(0, len(body), 2**18):
                self.wfile.write(body[at : at + 2**18])
                time.sleep(self.server.pause_s)
        self.close_connection = True

    def _begin(self) -> bool:
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        status, code = self.server.errors.get(self.command, (200, ""))
        if status != 200:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
        return status == 200

    def _end(self) -> None:
        if self.server.is_hub:
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0123456789"')
        self.send_header("X-Linked-ETag", f'"{self.server.asked_for(self.path)[2]}"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve until the block ends."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def start(hub: Hub, home: Path, stop_at: int | None, limit: int, **changes: Any) -> subprocess.Popen[str]:
    """Start a download in its own Python. `changes` in capitals are its environment, others the source."""
    environment = {key: value for key, value in changes.items() if key.isupper()}
    source = SOURCE | {key: value for key, value in changes.items() if not key.isupper()}
    arguments = json.dumps([source, stop_at, limit])
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, arguments],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HF_HOME": str(home),
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "NO_PROXY": "*",
        }
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(hub: Hub, home: Path, stop_at: int | None = None, limit: int = 0, **changes: Any) -> dict[str, Any]:
    out, err = start(hub, home, stop_at, limit, **changes).communicate(timeout=60)
    assert out, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def partial(home: Path) -> Path:
    return next(home.rglob("*.incomplete"))
