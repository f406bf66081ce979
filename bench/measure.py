"""The measurements of `bench/chat.py`: each function prepares an arm and returns what runs it once."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from chat.conversation import Conversation
from chat.model_host import Host
from chat.reply import Sessions
from core.engine import Sampling
from core.machine import thread_count
from core.registry import load_registry

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("llama-server", "in-process")
QUESTION = "Write a long story about a dragon and a knight, in many chapters."
GREEDY = Sampling(temperature=0, repeat_penalty=1, max_tokens=256, seed=0)
DEFAULT = Sampling(max_tokens=256, seed=1)

Arm = Callable[[], float]
Arms = dict[str, Arm]

_open: dict[str, Sessions] = {}


def interleave(arms: Arms, runs: int) -> dict[str, list[float]]:
    """Measure each arm once a run, `runs` times, showing how far it is."""
    figures: dict[str, list[float]] = {name: [] for name in arms}
    for run in range(runs):
        for name, arm in arms.items():
            print(f"\r  run {run + 1} of {runs}: {name:<40}", end="", flush=True)
            figures[name].append(arm())
    print("\r" + " " * 70, end="\r")
    return figures


def sessions(engine: str) -> Sessions:
    """The app without its page, its model loaded."""
    if engine not in _open:
        _open[engine] = Sessions(Host(load_registry(ROOT / "models.json"), engine))
        ask(_open[engine], GREEDY)
    return _open[engine]


def close() -> None:
    """End the engines that were opened."""
    for opened in _open.values():
        opened.host.close()
    _open.clear()


def ask(opened: Sessions, sampling: Sampling, question: str = QUESTION) -> tuple[Conversation, Any, list]:
    """One reply; returns the chat, its last progress, and (tokens so far, time) of each step."""
    chat = Conversation(model=opened.host.default, sampling=sampling)
    chat.say(question)
    steps, progress = [], None
    for progress in opened.reply("bench", chat):
        steps.append((progress.generated_tokens, time.perf_counter()))
    return chat, progress, [step for step in steps if step[0]]


def prompt_tokens() -> int:
    return int(ask(sessions("in-process"), GREEDY.model_copy(update={"max_tokens": 1}))[1].prompt_tokens)


def llama_bench(tokens: int, depth: int) -> Arm:
    """llama.cpp's own figure: the same decoding without sampling, text or page."""
    tool = Path(sysconfig.get_path("purelib")) / "bin" / "llama-bench"
    host = sessions("in-process").host
    model = host.registry.locate(host.registry.entries[host.default])
    command = [
        tool,
        "-m",
        model,
        "-t",
        thread_count(),
        "-p",
        0,
        "-n",
        tokens,
        "-d",
        depth,
        "-r",
        1,
        "-o",
        "json",
    ]

    def run() -> float:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)[0]["avg_ts"])

    return run


def rate(steps: list[tuple[int, float]]) -> float:
    (first, began), (last, ended) = steps[0], steps[-1]
    return (last - first) / (ended - began)


def handler(engine: str, sampling: Sampling) -> Arm:
    """At the handler: the session, the agent and the provider."""
    return lambda: rate(ask(sessions(engine), sampling)[2])


def long_reply(engine: str) -> Arm:
    def run() -> float:
        steps = ask(sessions(engine), GREEDY.model_copy(update={"max_tokens": 3500}))[2]
        if steps[-1][0] < 3500:
            raise SystemExit(f"the reply ended after {steps[-1][0]} tokens; this needs one of 3,500")
        early = [step for step in steps if step[0] <= 500]
        late = [step for step in steps if step[0] >= 3000]
        return 100 * rate(late) / rate(early)

    return run


def second_turn(engine: str) -> Arm:
    """Tokens evaluated for a second question, less those that are new since the first reply."""

    def run() -> float:
        opened = sessions(engine)
        chat, first, _ = ask(opened, GREEDY, f"{time.time()} {QUESTION}")
        known = first.prompt_tokens + first.generated_tokens
        chat.say("What was the knight's name?")
        *_, progress = opened.reply("bench", chat)
        new = progress.prompt_tokens - known
        return float(progress.prompt_tokens - progress.stats.cached_tokens - new)

    return run


def stop(engine: str, part: str) -> Arm:
    """Seconds from Stop until the engine does nothing any more."""

    def run() -> float:
        opened = sessions(engine)
        chat = Conversation(
            model=opened.host.default, sampling=GREEDY.model_copy(update={"max_tokens": 2000})
        )
        chat.say(f"{time.time()} {QUESTION} " + ("The dragon sleeps. " * 600 if part == "prompt" else ""))
        with opened.host.use(opened.host.default) as model:
            idle: Any = model.engine
        lines = idle_lines(idle)
        for progress in opened.reply("bench", chat):
            if progress.prompt_done > 0 if part == "prompt" else progress.generated_tokens > 20:
                break
        began = time.perf_counter()
        opened.stop("bench")
        while idle_lines(idle) == lines if engine == "llama-server" else idle.entered:
            time.sleep(0.005)
        return time.perf_counter() - began

    return run


def idle_lines(engine: Any) -> int:
    """How often the server's log says that a slot has stopped. Asking it would keep it from noticing."""
    return sum("stop processing" in line for line in list(getattr(engine, "log", [])))


@contextmanager
def app(engine: str):
    """The app as a user starts it; yields (its process, address, seconds until the page answered)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    command = [sys.executable, "app.py", "--engine", engine, "--port", str(port)]
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
                break
            time.sleep(0.02)
        yield process, f"http://127.0.0.1:{port}/", time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def start(engine: str) -> Arm:
    def run() -> float:
        with app(engine) as (_, _, seconds):
            return seconds

    return run


def gradio(engine: str) -> Arm:
    """Through Gradio, with a client on the same cores, at the pace of the page."""

    def run() -> float:
        from gradio_client import Client

        with app(engine) as (_, address, _):
            client = Client(address, verbose=False)
            options = GREEDY.model_dump() | {"api_name": "/chat"}
            client.submit(QUESTION, **options).result()
            job, times = client.submit(QUESTION, **options), []
            for text in job:
                times += [time.perf_counter()] if text else []
            client.close()
        return (GREEDY.max_tokens - 1) / (times[-1] - times[0])

    return run


def memory(engine: str) -> Arm:
    """Megabytes of the app and its children after a reply, less the model's file and its KV cache."""

    def run() -> float:
        from gradio_client import Client

        host = sessions(engine).host
        with app(engine) as (process, address, _), host.use(host.default) as model:
            client = Client(address, verbose=False)
            client.predict(QUESTION, **GREEDY.model_dump(), api_name="/chat")
            client.close()
            family = [process, *process.children(recursive=True)]
            used = sum(member.memory_full_info().pss for member in family)
            cells = model.engine.n_cells
            return (used - model.file.file_size - model.file.kv_bytes_per_token * cells) / 1e6

    return run


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = ("llama-cpp-python", "llama-cpp-agent", "gradio")
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": thread_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
