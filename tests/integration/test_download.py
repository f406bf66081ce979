"""Downloads from a real HTTP server on loopback that speaks as much of the hub's protocol as is needed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "a" * 40
CONTENT = random.Random(0).randbytes(12_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SOURCE = {"repo_id": "someone/Tiny-GGUF", "filename": "tiny-Q4_K_M.gguf"}

# huggingface_hub reads its settings when it is imported, so each download has a Python of its own.
DRIVER = """
import json, resource, sys
from pathlib import Path
from chat.download import download
from chat.entry import Source, parse_entry
from core.errors import ChatError
from chat.registry import Registry

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
        self.drops: list[int] = []  # cut the next connections after so many bytes
        self.pause_s = 0.0  # between 256 KiB
        self.is_hub = True

    @property
    def ranges(self) -> list[str | None]:
        return [value for method, _, value in self.asked if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        if self._begin():
            self.send_response(200)
            self.send_header("X-Linked-Size", str(self.server.declared_size))
            self._end()

    def do_GET(self) -> None:
        if not self._begin():
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        body = self.server.content[start:]
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(
            "Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}"
        )
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
        self.send_header("X-Linked-ETag", f'"{SHA256}"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
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


def test_a_download_shows_progress_and_is_found_again(hub: Hub, tmp_path: Path) -> None:
    answer = run(hub, tmp_path)
    assert Path(answer["path"]).read_bytes() == CONTENT
    assert answer["located"] == answer["path"]
    seen = [done for done, _ in answer["seen"]]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, len(CONTENT))
    assert len(seen) > 10
    assert {total for _, total in answer["seen"]} == {len(CONTENT)}
    assert all("/resolve/" in path for _, path, _ in hub.asked)  # nothing is reported to anyone
    assert not list(tmp_path.rglob("*.incomplete"))

    assert run(hub, tmp_path)["seen"] == []  # the second time nothing is fetched
    assert len(hub.ranges) == 1


def test_a_stopped_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    answer = run(hub, tmp_path, stop_at=3_000_000)
    assert "was stopped at" in answer["error"]
    done = partial(tmp_path).stat().st_size
    assert 3_000_000 <= done < 6_000_000
    answer = run(hub, tmp_path)
    assert answer["seen"][0][0] == done
    assert hub.ranges == ["bytes=0-", f"bytes={done}-"]
    assert Path(answer["path"]).read_bytes() == CONTENT


def test_a_killed_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.02
    child = start(hub, tmp_path, None, 0)
    assert child.stderr
    while int(child.stderr.readline()) < 2_000_000:
        pass
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert run(hub, tmp_path)["seen"][0][0] >= 2_000_000
    assert hub.ranges[1] != "bytes=0-"


def test_dropped_connections_are_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    hub.drops = [5_000_000, 0, 4_000_000]
    assert Path(run(hub, tmp_path)["path"]).read_bytes() == CONTENT
    assert len(hub.ranges) == 4


def test_two_downloads_of_one_file_do_not_mix(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.05
    first = start(hub, tmp_path, None, 0)
    assert first.stderr
    first.stderr.readline()
    assert "is being downloaded already" in run(hub, tmp_path)["error"]
    out, _ = first.communicate()
    assert Path(json.loads(out)["path"]).read_bytes() == CONTENT


def test_a_file_with_another_hash_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.content = bytes(len(CONTENT))
    assert "is not the expected file" in run(hub, tmp_path)["error"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_a_hash_that_differs_from_the_hubs_is_noticed_before_the_download(hub: Hub, tmp_path: Path) -> None:
    assert "is not the expected file" in run(hub, tmp_path, sha256="0" * 64)["error"]
    assert hub.ranges == []


def test_a_file_larger_than_the_disk_is_refused_before_the_download(hub: Hub, tmp_path: Path) -> None:
    hub.declared_size = 10**17
    assert "100000000.1 GB of disk" in run(hub, tmp_path)["error"]
    assert hub.ranges == []


def test_a_disk_that_fills_up_keeps_what_is_there(hub: Hub, tmp_path: Path) -> None:
    answer = run(hub, tmp_path, limit=4_000_000)  # the largest file that this process may write
    assert (
        answer["error"]
        == "can't store someone/Tiny-GGUF/tiny-Q4_K_M.gguf: File too large; start it again to go on"
    )
    assert 3_000_000 < partial(tmp_path).stat().st_size <= 4_000_000
    assert Path(run(hub, tmp_path)["path"]).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "no repository 'someone/Tiny-GGUF', or a private one"),
        (404, "EntryNotFound", "someone/Tiny-GGUF has no file 'tiny-Q4_K_M.gguf'"),
        (404, "RevisionNotFound", "someone/Tiny-GGUF has no revision 'main'"),
        (403, "GatedRepo", "/someone/Tiny-GGUF, then sign in with 'hf auth login'"),
        (401, "", "sign in with 'hf auth login'"),
        (503, "", "answered 503; try again later"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_sentence(
    hub: Hub, tmp_path: Path, status: int, code: str, message: str
) -> None:
    hub.errors["HEAD"] = (status, code)
    assert message in run(hub, tmp_path)["error"]


def test_offline_is_said_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    assert "HF_HUB_OFFLINE is set" in run(hub, tmp_path, HF_HUB_OFFLINE="1")["error"]
    assert "can't reach http://127.0.0.1:9 " in run(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")["error"]
    assert hub.asked == []


def test_a_server_that_is_no_hub_is_said_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.is_hub = False
    assert "doesn't answer like the hub" in run(hub, tmp_path)["error"]
