"""The engine in a child process: llama.cpp's own server, started, watched and spoken to over loopback.

A file that makes llama.cpp abort ends the child, never the app; several chats are decoded in one batch; and
the prompts of earlier chats stay in the server's cache. Token ids go in, so the server's own template code
is never used: `--chat-template chatml` keeps it from running the model's template when it starts.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from chat import child
from chat.engine import CHUNK_INTERVAL_S, PENALTY_WINDOW, Chunk, Sampling, Stats
from core.errors import ChatError, EngineDied, ModelFileError

CACHE_RAM_MIB = 256  # prompts of other chats kept ready; llama-server's default of 8 GiB has filled machines
BATCH_TIME_S = 0.45  # a batch can't be interrupted, and Stop may have to wait for two
FIRST_BATCH, MIN_BATCH, MAX_BATCH = 128, 16, 2048
PROBE_TOKENS = 64
START_TIMEOUT_S = 600  # a large file on a slow disk


def find_binary() -> Path | None:
    """llama-server as the wheel installs it, if it was built with llama.cpp's tools."""
    name = "llama-server.exe" if sys.platform == "win32" else "llama-server"
    path = Path(sysconfig.get_path("purelib")) / "bin" / name
    return path if path.is_file() else None


class LlamaServerGeneration:
    """One reply, read from the server's event stream."""

    def __init__(self, engine: LlamaServerEngine, ids: list[int], sampling: Sampling) -> None:
        self.stats = Stats(prompt_tokens=len(ids), seed=sampling.seed or 0)
        self._engine = engine
        n_predict = min(sampling.max_tokens, engine.n_ctx - len(ids))
        self._request = _completion(ids, sampling, n_predict, preserved_tokens=list(engine.shown))
        self._connection = http.client.HTTPConnection("127.0.0.1", engine.port)
        self._socket: socket.socket | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Shut the socket down: the server stops after the batch that it is in."""
        self._cancelled = True
        if self._socket:
            with suppress(OSError):  # the reply has just ended
                self._socket.shutdown(socket.SHUT_RDWR)

    def __iter__(self) -> Iterator[Chunk]:
        started = time.perf_counter()
        try:
            yield from self._chunks(started)
        except (OSError, http.client.HTTPException) as error:
            if not self._cancelled:
                raise self._engine.died() from error
        finally:
            self._connection.close()
            if self._socket:
                self._socket.close()
        if not self.stats.finish_reason:
            if not self._cancelled:
                raise self._engine.died()
            self.stats.finish_reason = "cancelled"
        self.stats.generated_tokens = len(self.stats.ids)

    def _chunks(self, started: float) -> Iterator[Chunk]:
        text, fresh, last = "", 0, 0.0
        for event, waited in self._events():
            if progress := event.get("prompt_progress"):
                self.stats.cached_tokens = progress["cache"]
                yield Chunk(prompt_done=progress["processed"])
                continue
            if event["stop"]:
                self._finish(event)
                break
            fresh += self._take_ids(event)
            text += event["content"]
            now = time.perf_counter()
            self.stats.first_token_s = self.stats.first_token_s or now - started
            # Sleep, then drain: two wake-ups an interval instead of one a token leave the cores to llama.cpp.
            if text and (waited or not last) and now - last >= CHUNK_INTERVAL_S:
                yield Chunk(text, tuple(self.stats.ids[-fresh:]) if fresh else ())
                text, fresh, last = "", 0, now
                time.sleep(CHUNK_INTERVAL_S)
        yield Chunk(text, tuple(self.stats.ids[len(self.stats.ids) - fresh :]))

    def _events(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield each event, and whether it had to be waited for."""
        self._connection.connect()
        self._socket = self._connection.sock
        if self._cancelled:
            return
        self._connection.request("POST", "/completion", self._request, self._engine.headers)
        response = self._connection.getresponse()
        if response.status != 200:
            raise _refusal(response)
        before = time.perf_counter()
        while line := response.readline():
            if line.startswith(
                b"data: "
            ):  # anything else is a blank line or a comment that keeps the line open
                now = time.perf_counter()
                yield json.loads(line[6:]), now - before > 0.001
                before = time.perf_counter()

    def _take_ids(self, event: dict[str, Any]) -> int:
        """Add the event's ids to the reply's. A character of several tokens arrives with its last id only:
        the others are found by tokenising it; where that fails, the history falls back to the text."""
        gap = event["tokens_predicted"] - len(self.stats.ids)
        ids = event["tokens"]
        if gap > len(ids):
            found = self._engine.tokenize(event["content"], False)[-gap:]
            ids = found if len(found) == gap and found[-1] == ids[-1] else [-1] * (gap - 1) + ids
        self.stats.ids += ids
        return len(ids)

    def _finish(self, event: dict[str, Any]) -> None:
        ended = event["stop_type"] == "eos"
        if ended and event["tokens_predicted"] == len(self.stats.ids):
            self.stats.ids.pop()  # the stop token itself
        self.stats.finish_reason = "stop" if ended else "length"
        timings = event["timings"]
        self.stats.cached_tokens = timings["cache_n"]
        self.stats.prompt_per_s = timings["prompt_per_second"] or 0.0
        self.stats.generated_per_s = timings["predicted_per_second"] or 0.0


class LlamaServerEngine:
    """A GGUF loaded by a llama-server of our own. Starting raises ModelFileError with the server's reason."""

    label = "llama-server"

    def __init__(
        self, path: Path, n_ctx: int, n_threads: int, adapters: list[str] | None = None, slots: int = 1
    ) -> None:
        self.n_ctx = n_ctx
        self.shown: Mapping[str, int] = {}
        self._path, self._n_threads, self.slots, self._adapters = path, n_threads, slots, adapters or []
        self.batch = FIRST_BATCH
        self._start()
        if (batch := self._measured_batch()) != self.batch:
            self.close()
            self.batch = batch
            self._start()

    def _start(self) -> None:
        key = secrets.token_urlsafe(32)  # through the environment: a command line is everyone's to read
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.log: deque[str] = deque(maxlen=300)
        self._process = child.guarded(self._command(), {"LLAMA_API_KEY": key})
        self._ready = threading.Event()
        self.port = 0
        threading.Thread(
            target=self._read_log, args=(self._process,), name="llama-server log", daemon=True
        ).start()
        if not self._ready.wait(START_TIMEOUT_S) or not self.port:
            self.close()
            raise ModelFileError(f"{self._path.name} could not be loaded: {self._reason()}")

    def _command(self) -> list[str]:
        binary = find_binary()
        if binary is None:
            raise ChatError(
                "This installation has no llama-server; start with: python app.py --engine in-process"
            )
        options = {
            "--model": self._path,
            "--host": "127.0.0.1",
            "--port": 0,  # the kernel picks a free one, the log says which
            "--ctx-size": self.n_ctx * self.slots,
            "--parallel": self.slots,
            "--threads": self._n_threads,
            "--threads-http": self.slots + 2,
            "--batch-size": self.batch,
            "--ubatch-size": self.batch,
            "--cache-ram": CACHE_RAM_MIB,
            "--chat-template": "chatml",
            "--log-colors": "off",
        }
        adapters = [word for adapter in self._adapters for word in ("--lora", adapter)]
        switches = ["--no-ui", "--no-slots", "--offline", "--no-context-shift", "--no-kv-unified"]
        return [str(binary), *(str(word) for pair in options.items() for word in pair), *switches, *adapters]

    def _read_log(self, process: Any) -> None:
        with process.stdout as lines:
            for raw in lines:
                line = raw.decode("utf-8", "replace").rstrip()
                self.log.append(line)
                if "listening on http://" in line and not self._ready.is_set():
                    self.port = int(line.rsplit(":", 1)[1])
                    self._ready.set()
        self._ready.set()  # end of the log: the server is gone

    def _measured_batch(self) -> int:
        """The largest power of two that this machine evaluates within BATCH_TIME_S."""
        vocabulary = self.tokenize(
            "The quick brown fox jumps over the lazy dog, again and again. " * 8, False
        )
        request = _completion(vocabulary[:PROBE_TOKENS], Sampling(temperature=0, seed=0), 1, stream=False)
        speed = self._post("/completion", request)["timings"]["prompt_per_second"] or 1.0
        batch = MIN_BATCH
        while batch * 2 <= min(speed * BATCH_TIME_S, MAX_BATCH):
            batch *= 2
        # A step up is within what a busy machine misjudges, and not worth a second start.
        return batch if batch < FIRST_BATCH or batch > FIRST_BATCH * 2 else FIRST_BATCH

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text`, no BOS added."""
        body = json.dumps({"content": text, "add_special": False, "parse_special": special})
        tokens: list[int] = self._post("/tokenize", body)["tokens"]
        return tokens

    def _post(self, path: str, body: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("POST", path, body, self.headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response)
            return json.load(response)
        except (OSError, http.client.HTTPException) as error:
            raise self.died() from error
        finally:
            connection.close()

    def generate(self, ids: list[int], sampling: Sampling) -> LlamaServerGeneration:
        """Start a reply to the prompt `ids`; a free slot takes it, or the first that becomes free."""
        if not ids or len(ids) >= self.n_ctx:
            raise ChatError(f"A prompt of {len(ids)} tokens does not fit a context of {self.n_ctx} tokens.")
        return LlamaServerGeneration(self, ids, sampling.seeded())

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the child; the kernel takes its memory back."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def died(self) -> EngineDied:
        """The error for a reply that the server did not finish."""
        return EngineDied(
            f"The model's process stopped in the middle of a reply ({self._reason()}). Retry the turn."
        )

    def _reason(self) -> str:
        for line in reversed(self.log):
            if " E " in line or "error" in line.lower():
                return line.rsplit(": ", 1)[-1].strip()
        return f"llama-server ended with code {self._process.poll()} and gave no reason"


def _completion(
    ids: list[int], sampling: Sampling, n_predict: int, stream: bool = True, **more: list[str]
) -> str:
    """The body of a request: our fields only, never what a client sent."""
    fields = sampling.model_dump(exclude={"max_tokens"})
    fields |= {"prompt": ids, "n_predict": n_predict, "repeat_last_n": PENALTY_WINDOW, "cache_prompt": stream}
    fields |= {"stream": stream, "return_tokens": True, "return_progress": stream, "response_fields": None}
    fields |= more
    if sampling.temperature == 0:
        fields |= {"samplers": ["penalties", "top_k"], "top_k": 1}  # greedy: nothing else to compute
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def _refusal(response: http.client.HTTPResponse) -> ChatError:
    try:
        message = json.load(response)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.reason
    return ChatError(f"llama-server refused the request: {message}")
