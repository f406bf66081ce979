"""Measure the API beside direct clients of llama-server: python -m bench.api [--runs 5]

It is the last group of `make bench`. Users are threads of this program, which read their streams line by
line, the same through both: as many clients of `/v1/chat/completions` of the app, and of `/completion` of a
llama-server that the app's own host started, with as many slots, threads and the same samplers. Greedy, with
replies of fixed lengths; figures are tokens per second of all users together, medians of interleaved runs,
and a share is the median of the shares of each run: what else the machine does changes from minute to minute.
llama-batched-bench decodes as many sequences, without text, samplers or clients.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import psutil

from bench import measure
from bench.measure import Arms, interleave
from chat import llama_server
from chat.llama_reply import completion
from core.engine import Request
from core.machine import thread_count

RESULTS = Path(__file__).with_name("results") / "api.json"
LENGTHS = {1: 192, 2: 128, 4: 128, 8: 48, 16: 48}  # tokens of a reply, by users
SHORT = "What is a knight?"
LONG = "The dragon sleeps in its cave. " * 100
Line = tuple[str, dict[str, str], str]  # where a request goes: host and port, headers, path

PROCESSOR = "processor of the app, ms a token"
GOALS = {1: 0.95, 2: 0.95, 4: 0.95}


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description="Measure the API beside direct clients of llama-server.")
    parser.add_argument("--runs", type=int, default=5)
    run(parser.parse_args().runs)
    print(f"\nkept in {RESULTS}")


def run(runs: int) -> None:
    """Measure all arms `runs` times, print the table, and keep it."""
    with measure.app("llama-server") as (process, address, _):
        app: Line = address.split("/")[2], {"Content-Type": "application/json"}, "/v1/chat/completions"
        _users(app, _chat, 1, 8)  # the app's engine has measured what this machine can do
        direct, server = _direct(_batch(process))
        before = process.memory_full_info().pss
        _users(app, _chat, 2, 8)
        _users(direct, server, 2, 8)
        arms: Arms = {}
        for users, tokens in LENGTHS.items():
            arms[f"API, {users}"] = lambda n=users, t=tokens: _users(app, _chat, n, t)  # type: ignore[misc]
            arms[f"direct, {users}"] = lambda n=users, t=tokens: _users(direct, server, n, t)  # type: ignore[misc]
            arms[f"llama-batched-bench, {users}"] = lambda n=users, t=tokens: _batched(n, t)  # type: ignore[misc]
        arms[PROCESSOR] = lambda: _processor_ms(process, app)
        arms["first token alone, s"] = lambda: _first_token(app)
        arms["first token beside 3, s"] = lambda: _beside(app, 3)
        arms["one batch, s"] = lambda: _batch_s(direct, server)
        figures = interleave(arms, runs)
        added = (process.memory_full_info().pss - before) / 1e6
    medians = {name: statistics.median(each) for name, each in figures.items()}
    _report(figures, medians, added)
    about = {"date": date.today().isoformat(), **measure.machine(), "slots": _engine().slots}
    kept = {"about": about, "medians": medians, "runs": figures, "MB that the users added": added}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    measure.close()


def _report(figures: dict[str, list[float]], medians: dict[str, float], added: float) -> None:
    print("users     API  direct batched   API's  direct's share of the one right of it (tokens/s)")
    for users in LENGTHS:
        names = api, direct, bare = [f"{arm}, {users}" for arm in ("API", "direct", "llama-batched-bench")]
        speeds = "".join(f"{medians[name]:8.1f}" for name in names)
        shares = f"{_share(figures, api, direct):9.1%}{_share(figures, direct, bare):9.1%}"
        print(f"{users:5}{speeds}{shares}   {f'(at least {GOALS[users]:.0%})' if users in GOALS else ''}")
    per_token = 1000 * (1 / medians["API, 1"] - 1 / medians["direct, 1"])
    print(
        f"the API adds {per_token:.2f} ms a token (under 2), of which its processor time is "
        f"{medians[PROCESSOR]:.2f}, and {added:.0f} MB (under 150)"
    )
    alone, beside, batch = (
        medians[name] for name in ("first token alone, s", "first token beside 3, s", "one batch, s")
    )
    print(f"first token: {alone:.3f} s alone, {beside:.3f} s beside 3 (under {1.5 * alone + batch:.3f})")


def _share(figures: dict[str, list[float]], name: str, of: str) -> float:
    return statistics.median(one / other for one, other in zip(figures[name], figures[of], strict=True))


def _batch(app: psutil.Process) -> int:
    """The batch of the app's llama-server, which decides about its slots."""
    commands = [child.cmdline() for child in app.children(recursive=True)]
    server = next(command for command in commands if "--batch-size" in command)
    return int(server[server.index("--batch-size") + 1])


def _engine() -> Any:
    host = measure.sessions("llama-server").host
    with host.use(host.default) as model:
        return model.engine


def _direct(batch: int) -> tuple[Line, Callable[[str, int], str]]:
    """A llama-server with the settings of the app's, and what turns a question into a request to it."""
    llama_server.MIN_BATCH = llama_server.MAX_BATCH = batch
    host = measure.sessions("llama-server").host
    with host.use(host.default) as model:
        engine: Any = model.engine
        encode = model.encoder.encode

    def body(question: str, tokens: int) -> str:
        return completion(
            Request(encode([{"role": "user", "content": question}]), measure.GREEDY), [], tokens
        )

    return (f"127.0.0.1:{engine.port}", engine.headers, "/completion"), body


def _chat(question: str, tokens: int) -> str:
    """The same as a request to the API."""
    fields = measure.GREEDY.model_dump() | {"max_tokens": tokens, "stream": True}
    usage = {"stream_options": {"include_usage": True}}
    return json.dumps(fields | usage | {"messages": [{"role": "user", "content": question}]})


def _events(line: Line, body: str) -> Iterator[dict[str, Any]]:
    """The events of one streamed reply; leaving them ends it."""
    where, headers, path = line
    with closing(http.client.HTTPConnection(where, timeout=300)) as connection:
        connection.request("POST", path, body, headers)
        with connection.getresponse() as response:
            if response.status != 200:
                raise SystemExit(f"{path} answered {response.status}: {response.read().decode()[:300]}")
            while text := response.readline():
                if text.startswith(b"data: {"):
                    yield json.loads(text[6:])


def _tokens(event: dict[str, Any]) -> int:
    """How many tokens the reply has had, where the event says it."""
    return int(event.get("tokens_predicted") or (event.get("usage") or {}).get("completion_tokens") or 0)


def _users(line: Line, body: Callable[[str, int], str], users: int, tokens: int) -> float:
    """Tokens a second of `users` replies at once, each of `tokens` tokens."""
    counts: list[int] = []

    def user(number: int) -> None:
        asked = body(f"{measure.QUESTION} Its hero is number {number}.", tokens)
        counts.append(max(map(_tokens, _events(line, asked))))

    threads = [threading.Thread(target=user, args=(number,)) for number in range(users)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if counts != [tokens] * users:
        raise SystemExit(f"the replies have {counts} tokens, not {tokens} each")
    return users * tokens / seconds


def _processor_ms(app: psutil.Process, line: Line) -> float:
    """Milliseconds of a core that the app takes for a token, without its llama-server."""
    before = app.cpu_times()
    _users(line, _chat, 1, LENGTHS[1])
    after = app.cpu_times()
    seconds: float = after.user + after.system - before.user - before.system
    return 1000 * seconds / LENGTHS[1]


def _has_text(event: dict[str, Any]) -> bool:
    choices = event.get("choices")
    return bool(choices and choices[0]["delta"].get("content"))


def _first_token(line: Line) -> float:
    """Seconds to the first token of a short question that was not asked before."""
    began = time.perf_counter()
    next(filter(_has_text, _events(line, _chat(f"{time.time()}: {SHORT}", 4))))
    return time.perf_counter() - began


def _beside(line: Line, others: int) -> float:
    """The same while `others` are answered at length."""
    streams = [
        _events(line, _chat(f"{measure.QUESTION} Its hero is {number}.", 2000)) for number in range(others)
    ]
    try:
        stop = threading.Event()
        threads = [threading.Thread(target=_read, args=(stream, stop)) for stream in streams]
        for stream, thread in zip(streams, threads, strict=True):
            next(filter(_has_text, stream))
            thread.start()
        seconds = _first_token(line)
        stop.set()
        for thread in threads:
            thread.join()
        return seconds
    finally:
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]


def _read(stream: Iterator[Any], stop: threading.Event) -> None:
    for _ in stream:
        if stop.is_set():
            return


def _batch_s(line: Line, body: Callable[[str, int], str]) -> float:
    """Seconds that one batch of a prompt takes, at the speed of a prompt of many."""
    *_, last = _events(line, body(f"{time.time()} {LONG}", 1))
    return float(_engine().batch / last["timings"]["prompt_per_second"])


def _batched(sequences: int, tokens: int) -> float:
    tool = Path(sysconfig.get_path("purelib")) / "bin" / "llama-batched-bench"
    host = measure.sessions("llama-server").host
    model = host.registry.locate(host.registry.entries[host.default])
    sizes = ["-npp", "32", "-ntg", str(tokens), "-npl", str(sequences), "-c", str(sequences * (tokens + 64))]
    command = [str(tool), "-m", str(model), "-t", str(thread_count()), *sizes, "--output-format", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return float(json.loads(line)["speed_tg"])


if __name__ == "__main__":
    main()
