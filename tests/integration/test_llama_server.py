"""The llama-server child: locked up, watched, and gone when the app is."""

from __future__ import annotations

import http.client
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import llama_cpp
import psutil
import pytest

from chat.llama_server import BATCH_TIME_S, LlamaServerEngine
from chat.model_host import Host
from core.engine import Request, Sampling
from core.entry import Entry, Source
from core.errors import EngineDied
from core.in_process import InProcessEngine
from core.machine import memory_limit_bytes, thread_count
from core.registry import Registry
from tests.integration.running_app import App, copy_app, wait_for

LONG = Sampling(temperature=0, repeat_penalty=1, max_tokens=1500)


@pytest.fixture
def engine(embedded_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaServerEngine]:
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_children")
    monkeypatch.setenv("LLAMA_ARG_HOST", "0.0.0.0")
    opened = LlamaServerEngine(embedded_model, 2048, thread_count())
    opened.settle()
    yield opened
    opened.close()


def server(engine: LlamaServerEngine) -> psutil.Process:
    """The engine's own server: other tests' engines may be open too."""
    children = psutil.Process().children(recursive=True)
    servers = [child for child in children if child.name().startswith("llama-server")]
    return next(child for child in servers if engine.port in {c.laddr.port for c in child.net_connections()})


def test_it_listens_on_loopback_only_and_asks_for_a_key(engine: LlamaServerEngine) -> None:
    addresses = {c.laddr.ip for c in server(engine).net_connections() if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}
    connection = http.client.HTTPConnection("127.0.0.1", engine.port)
    connection.request("POST", "/completion", "{}", {"Content-Type": "application/json"})
    assert connection.getresponse().status == 401
    connection.close()


def test_it_knows_no_secret_of_ours_and_its_own_is_not_on_the_command_line(engine: LlamaServerEngine) -> None:
    process = server(engine)
    key = engine.headers["Authorization"].removeprefix("Bearer ")
    assert key not in " ".join(process.cmdline())
    assert "HF_TOKEN" not in process.environ()
    assert process.environ()["LLAMA_API_KEY"] == key


@pytest.mark.parametrize("engine", ["llama-server", "in-process"])
def test_under_a_quota_of_one_core_it_computes_with_one_thread(
    embedded_model: Path, tmp_path: Path, engine: str
) -> None:
    """The control group's files are made up, from there to the running engine all is as it is."""
    root = tmp_path / "root"
    for name, text in {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 100000"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    entry = Entry(sources=[Source(path=str(embedded_model))], n_ctx=256)
    registry = Registry(tmp_path / "models.json", {"small": entry})
    with (
        closing(Host(registry, engine, threads=lambda: thread_count(root))) as host,
        host.use("small") as model,
    ):
        if isinstance(model.engine, LlamaServerEngine):
            command = server(model.engine).cmdline()
            assert command[command.index("--threads") + 1] == "1"
        else:
            assert isinstance(model.engine, InProcessEngine)
            context = model.engine._model._context
            assert llama_cpp.llama_n_threads(context) == llama_cpp.llama_n_threads_batch(context) == 1


@pytest.fixture
def group_of_one_core() -> Iterator[Path]:
    """A real control group, where this machine lets us make one."""
    quotas = {"cpu.max": "100000 100000", "cpu.cfs_quota_us": "100000"}  # of version 2 and 1
    for above in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")):
        group = above / f"tune2chat-test-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            for name in (name for name in quotas if (group / name).exists()):
                (group / name).write_text(quotas[name])
                yield group
                group.rmdir()
                return
            group.rmdir()
    pytest.skip("no control group can be made here")


@pytest.mark.skipif(thread_count() == 1, reason="there is but one core, with a quota or without")
def test_in_a_real_group_of_one_core_the_apps_server_computes_with_one_thread(
    tmp_path: Path, group_of_one_core: Path
) -> None:
    app = App(copy_app(tmp_path), "--engine", "llama-server")
    (group_of_one_core / "cgroup.procs").write_text(str(app.process.pid))
    (started,) = wait_for(lambda: app.children("llama-server"))
    command = started.cmdline()
    app.end(signal.SIGTERM)
    psutil.wait_procs([started], timeout=10)
    assert command[command.index("--threads") + 1] == "1"


def test_it_serves_no_page_no_slots_and_never_the_models_template(engine: LlamaServerEngine) -> None:
    command = server(engine).cmdline()
    assert {"--no-ui", "--no-slots", "--offline", "--cache-ram"} <= set(command)
    assert command[command.index("--chat-template") + 1] == "chatml"
    assert command[command.index("--threads") + 1] == str(thread_count())


def test_no_batch_takes_longer_than_a_user_waits_for_stop(engine: LlamaServerEngine) -> None:
    ids = engine.tokenize("A text to be read at this machine's own speed. " * 100, False)
    generation = engine.generate(Request(ids, LONG.model_copy(update={"max_tokens": 1})))
    list(generation)
    assert (
        engine.batch / generation.stats.prompt_per_s < BATCH_TIME_S * 4
    )  # a busy machine is slower than it was


def test_killed_in_the_middle_of_a_reply_it_leaves_a_sentence_and_what_was_written(
    engine: LlamaServerEngine,
) -> None:
    generation = engine.generate(Request(engine.tokenize("Once upon a time", False), LONG))
    chunks = iter(generation)
    assert next(chunk.text for chunk in chunks if chunk.text)
    server(engine).kill()
    with pytest.raises(EngineDied, match=r"stopped in the middle of a reply.*Retry"):
        list(chunks)
    assert not engine.alive()
    with pytest.raises(EngineDied):
        engine.tokenize("more", False)


def test_closing_it_ends_the_process(embedded_model: Path) -> None:
    engine = LlamaServerEngine(embedded_model, 512, 1)
    process = server(engine)
    engine.close()
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these limits")
def test_it_gains_no_rights_and_writes_to_no_more_memory_than_there_is(engine: LlamaServerEngine) -> None:
    """What else it may not do: tests/unit/test_sandbox.py."""
    about = Path(f"/proc/{server(engine).pid}")
    assert "NoNewPrivs:\t1" in (about / "status").read_text()
    data = next(line for line in (about / "limits").read_text().splitlines() if "Max data size" in line)
    assert data.split()[3] == str(memory_limit_bytes())
