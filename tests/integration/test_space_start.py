"""The app as a ZeroGPU Space starts it: no download, no home, the real `spaces`, no traceback in the log."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from chat import space
from core.registry import hub_source, load_registry
from tests.integration.running_app import copy_app, environment, free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


class ZeroDevice(ThreadingHTTPServer):
    """The service beside a ZeroGPU Space to which `spaces` reports that a function wants a GPU."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.paths: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: ZeroDevice

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def zero_device() -> Iterator[ZeroDevice]:
    server = ZeroDevice()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def spaces_package(tmp_path: Path) -> Path:
    """The real `spaces`, in a folder of its own: Gradio imports it wherever it is installed."""
    target = tmp_path / "site"
    install = ["install", "--quiet", "--no-deps", "--retries", "0", "--target", target, "spaces"]
    if subprocess.run([*PIP, *install], capture_output=True).returncode:
        pytest.skip("no package index that has spaces; set PIP_INDEX_URL to one")
    # A Space has no PyTorch, and `spaces` can't do with one that was built without CUDA.
    (target / "torch.py").write_text("raise ImportError('no torch on this Space')\n")
    return target


def preload(cache: Path, folder: Path, model: Path) -> None:
    """Have the default model where the Space's builder puts it, and nowhere else."""
    entries = json.loads((ROOT / "models.json").read_text())
    source = hub_source(next(iter(load_registry(ROOT / "models.json").entries.values())))
    assert source
    assert source.repo_id
    assert source.revision
    assert source.filename
    first = next(iter(entries.values()))
    first["sources"] = [each for each in first["sources"] if "repo_id" in each]
    (folder / "models.json").write_text(json.dumps(entries))
    repository = cache / f"models--{source.repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / source.revision
    snapshot.mkdir(parents=True)
    (snapshot / source.filename).symlink_to(model)


def ask(url: str, message: str, **settings: int) -> str:
    """One turn through the API as the proxy hands it on; returns the stream of events.

    Gradio's client would follow the address that the Space has on the hub.
    """
    with urllib.request.urlopen(f"{url}/gradio_api/info", timeout=30) as answer:
        parameters = json.load(answer)["named_endpoints"]["/chat"]["parameters"]
    given = {"message": message} | settings
    data = [given.get(each["parameter_name"], each.get("parameter_default")) for each in parameters]
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(
        f"{url}/gradio_api/call/chat", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/chat/{event}", timeout=200) as answer:
        return str(answer.read().decode())


def test_a_zero_gpu_space_comes_up(
    tmp_path: Path, embedded_model: Path, spaces_package: Path, zero_device: ZeroDevice
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    copy_app(folder)
    preload(tmp_path / "cache", folder, embedded_model)
    (tmp_path / "home").write_text("a file: nothing can be written below it")
    port = free_port()
    variables = environment(
        SYSTEM="spaces",
        SPACE_ID="someone/chat",
        SPACE_HOST="someone-chat.hf.space",
        SPACES_ZERO_GPU="true",
        SPACES_ZERO_DEVICE_API_URL=zero_device.url,
        GRADIO_ROOT_PATH="/proxied",
        GRADIO_SERVER_PORT=str(port),
        TUNE2CHAT_ENGINE="in-process",  # there is no llama-server
        PYTHONPATH=str(spaces_package),
        HOME=str(tmp_path / "home"),
        HF_HUB_CACHE=str(tmp_path / "cache"),
        HF_ENDPOINT=f"http://127.0.0.1:{free_port()}",  # nobody answers: a download would fail
    )
    del variables["HF_HUB_OFFLINE"]
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"

        def page() -> str:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        shown = wait_for(page)
        assert space.NOTE in shown
        assert "/proxied" in shown
        assert zero_device.paths == ["/startup-report"]
        listening = [c.laddr for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"]
        assert ("0.0.0.0", port) in listening
        assert "event: complete" in ask(url, "Say hello.", max_tokens=4)
    finally:
        process.terminate()
        process.wait(60)
    assert "Traceback" not in log.read_text(), log.read_text()
    assert "Downloading" not in log.read_text()
