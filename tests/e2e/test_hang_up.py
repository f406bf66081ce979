"""A client of the API that hangs up: its reply ends, and the engine is idle, within a second.

Here and not among the integration tests, since nothing else may take the cores in that second.
"""

from __future__ import annotations

import json
import random
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chat.llama_server import LlamaServerEngine
from chat.reply import Sessions
from chat.screen import build_demo, launch
from core.in_process import InProcessEngine
from tests.integration.running_app import free_port
from tests.integration.test_host import host_of, wait_until
from tests.integration.test_service import ENGINES, IDLE_S, SLACK_S, engine_of, one_core, short

QUIET_S = 0.1  # in which the server of an engine would begin what is still on its way to it


class Served:
    """The app in this process, where the log of its engine can be seen."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions, self.engine, self.port = sessions, engine_of(sessions), free_port()
        self._demo = build_demo(sessions)
        up = threading.Event()
        given: Any = (self._demo, sessions, None, self.port, [], lambda address: up.set())
        self._thread = threading.Thread(target=launch, args=given, daemon=True)
        self._thread.start()
        assert up.wait(60)

    def close(self) -> None:
        self._demo.is_running = False
        self._thread.join(30)

    def ask(self, words: str, stream: bool, more: bytes = b"") -> socket.socket:
        """Ask for a long text that goes on from `words`, with `more` behind that request, and return when the
        engine has begun with it."""
        if isinstance(self.engine, LlamaServerEngine):
            self.engine.log.clear()
        asked = {"prompt": words, "max_tokens": 1500, "temperature": 0, "repeat_penalty": 1, "stream": stream}
        body = json.dumps(asked)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        line = socket.create_connection(("127.0.0.1", self.port))
        line.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode() + more)
        wait_until(self.works)
        return line

    def works(self) -> bool:
        """Whether the engine has a reply to make. The server is never asked: that would keep it from seeing
        that a client is gone."""
        if isinstance(self.engine, InProcessEngine):
            return bool(self.engine._unfinished)
        log = "\n".join(list(self.engine.log))
        return log.count("processing task") > log.count("stop processing")

    def idle_after(self) -> float:
        """Seconds until the engine has nothing to do any more."""
        began = last = time.monotonic()
        while time.monotonic() - last < QUIET_S:
            if self.works():
                last = time.monotonic()
            assert last - began < IDLE_S + SLACK_S
            time.sleep(0.005)
        return last - began


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest, embedded_model: Path) -> Iterator[Served]:
    with one_core(), closing(host_of(request.param, small=(embedded_model, 2048))) as host:
        with closing(Served(Sessions(host))) as served:
            yield served
        assert not host.queue.running


def close(line: socket.socket) -> None:
    line.close()


def reset(line: socket.socket) -> None:
    """What a process that is killed with something unread does."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


def half_close(line: socket.socket) -> None:
    """It sends no more, and might read on."""
    line.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("part", ["prompt", "reply"])
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_the_engine_is_idle_within_a_second(served: Served, part: str, stream: bool) -> None:
    draw, seconds, counts = random.Random(part), list[float](), served.sessions.host.queue.counts
    for number in range(short(3, 25)):
        before = counts.generated_tokens
        words = f"{number} {stream} " * 12  # any model goes on with that
        with closing(served.ask(words + "A tale of the sea. " * 250 * (part == "prompt"), stream)) as line:
            time.sleep(draw.uniform(0, 0.5) + (part == "reply"))
            assert served.works(), "else this shows nothing"
            hang_up: Callable[[Any], None] = draw.choice([close, reset, half_close])
            hang_up(line)
            seconds.append(served.idle_after())
        wait_until(lambda: not served.sessions.host.queue.running)
        assert (counts.generated_tokens > before) == (part == "reply")
    assert statistics.median(seconds) < IDLE_S


def test_who_asks_for_more_meanwhile_and_hangs_up_is_not_answered_either(served: Served) -> None:
    """A server that reads no further while a request waits doesn't see the end of the line."""
    for more in (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2, b"GET /health HTTP/1.1\r\nX: "):
        line = served.ask("A tale of the sea.", False, more)
        time.sleep(0.5)
        line.close()
        assert served.idle_after() < IDLE_S + SLACK_S
