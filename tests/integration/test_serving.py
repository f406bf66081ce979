"""`python app.py` while it serves: what it says, how it ends, and that nothing outlives it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from chat.llama_server import find_binary
from tests.integration.running_app import PATIENCE_S, App, copy_app, environment, wait_for

SECONDS = 15  # on a machine that does other things too; it takes 0.1 to 2

needs_server = pytest.mark.skipif(not find_binary(), reason="no llama-server here; run: make test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_app(tmp_path)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., App]]:
    apps: list[App] = []

    def start(*options: str) -> App:
        apps.append(App(folder, *options))
        return apps[-1]

    yield start
    for app in apps:
        app.process.kill()
        app.process.wait()


def check_what_is_refused(app: App) -> None:
    """Foreign pages, unknown names, other kinds of bodies, and the pages that Gradio has beside ours."""
    join = "/gradio_api/queue/join"
    cases: list[tuple[int, str, bytes | None, dict[str, str]]] = [
        (403, "/", None, {"Host": "evil.example"}),
        (403, "/config", None, {"Origin": "http://evil.example"}),
        (403, join, b"{}", {"Origin": "http://evil.example", "Content-Type": "application/json"}),
        (415, join, b"{}", {"Content-Type": "text/plain"}),
        (413, join, b" " * 10_000_000, {"Content-Type": "application/json"}),
        (404, "/openapi.json", None, {}),
        (404, "/gradio_api/runs", None, {}),
    ]
    for status, path, body, headers in cases:
        request = urllib.request.Request(app.url + path, body, headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE_S)
        assert refused.value.code == status, path
        refused.value.close()


def test_what_is_good_in_models_json_is_served_and_the_rest_is_named(
    folder: Path, start: Callable[..., App]
) -> None:
    models = json.loads((folder / "models.json").read_text())
    good = dict(list(models.items())[:1])
    entry = next(iter(good.values()))
    bad = {"Typo": entry | {"n_ctxx": 5}, "Text": entry | {"n_ctx": "many"}}
    (folder / "models.json").write_text(json.dumps(good | bad))
    app = start("--engine", "in-process")
    page = app.wait_until_it_answers()
    assert "SmolLM2-135M-Instruct" in page
    check_what_is_refused(app)
    log = app.log.read_text()
    assert "Typo is left out of the menu: unknown key 'n_ctxx'; did you mean 'n_ctx'?" in log
    assert "Text is left out of the menu: 'n_ctx' is \"many\"" in log


def test_an_architecture_that_llama_cpp_does_not_know_is_named_and_the_page_stays(
    folder: Path, embedded_model: Path, start: Callable[..., App]
) -> None:
    shutil.copyfile(embedded_model, folder / "other.gguf")
    with (folder / "other.gguf").open("r+b") as file:
        content = file.read(4096)
        file.seek(content.index(b"llama", content.index(b"general.architecture")))
        file.write(b"lamma")
    app = start("--engine", "in-process", "--model", "other.gguf")
    app.wait_until_it_answers()
    wait_for(lambda: "error: other.gguf could not be loaded: " in app.log.read_text())
    assert "unknown model architecture: 'lamma'" in app.log.read_text()
    assert "Traceback" not in app.log.read_text()


@needs_server
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_llama_server_outlives_the_app(start: Callable[..., App], how: signal.Signals) -> None:
    app = start("--engine", "llama-server")
    app.wait_until_it_answers()
    servers = wait_for(lambda: app.children("llama-server"))
    everyone = psutil.Process(app.process.pid).children(recursive=True)
    log = app.end(how)
    _, alive = psutil.wait_procs([*servers, *everyone], timeout=PATIENCE_S)
    assert not alive
    assert "Traceback" not in log


@pytest.mark.parametrize("engine", ["in-process", pytest.param("llama-server", marks=needs_server)])
def test_ctrl_c_ends_the_app_quietly(start: Callable[..., App], engine: str) -> None:
    app = start("--engine", engine)
    app.wait_until_it_answers()
    log = app.end(signal.SIGINT)
    assert "Traceback" not in log
    assert "Exception" not in log
    assert app.process.returncode in (0, 130, -signal.SIGINT)


@pytest.mark.parametrize("loaded", ["gradio", "llama_cpp"])
def test_ctrl_c_ends_the_app_in_seconds_while_it_starts_or_loads(
    start: Callable[..., App], loaded: str
) -> None:
    app = start("--engine", "in-process")
    maps = Path(f"/proc/{app.process.pid}/maps")
    part = {"gradio": "/numpy/", "llama_cpp": "libllama"}[loaded]  # what is mapped in the middle of it
    wait_for(lambda: part in maps.read_text())
    began = time.monotonic()
    log = app.end(signal.SIGINT)
    assert time.monotonic() - began < SECONDS
    assert "Traceback" not in log
    assert app.process.returncode in (0, 130, -signal.SIGINT)


def test_importing_app_starts_nothing(folder: Path) -> None:
    code = """
import app, sys, threading, psutil
print([t.name for t in threading.enumerate()], psutil.Process().children(), "llama_cpp" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['MainThread'] [] False"


PROXIES = {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("host", "opens"), [("[::1]", "[::1]"), ("0.0.0.0", "127.0.0.1")], ids=["one address", "all of them"]
)
def test_the_address_that_is_printed_opens_whatever_proxies_there_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[..., App], host: str, opens: str
) -> None:
    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no IPv6; try it where `ping ::1` answers")
    for name, proxy in (PROXIES | {"ALL_PROXY": "socks5://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, proxy)
    app = start("--engine", "in-process", "--host", host)
    app.url = app.url.replace("127.0.0.1", opens)
    wait_for(lambda: f"The chat is at {app.url}/ " in app.log.read_text() or app.process.poll() is not None)
    assert f"The chat is at {app.url}/ " in app.log.read_text()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(app.url, timeout=PATIENCE_S) as response:
        assert response.status == 200
    assert "Traceback" not in app.log.read_text()


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
