"""The engine in a child process: llama.cpp's own server, started, watched and spoken to over loopback.

A file that makes llama.cpp abort ends the child, never the app; several chats are decoded in one batch; and
the prompts of earlier chats stay in the server's cache. Token ids go in, so the server's own template code
is never used: `--chat-template chatml` keeps it from running the model's template when it starts.
"""

from __future__ import annotations

import http.client
import json
import secrets
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from chat.llama_reply import LlamaServerGeneration, completion, refusal
from core import child
from core.engine import (
    LOOK_AGAIN_S,
    LoadCancelled,
    Request,
    Sampling,
    first_reason,
    server_errors,
    wanted,
)
from core.errors import ChatError, EngineDied, ModelFileError
from core.gguf_reader import parts
from core.lora import Adapter, strengths
from core.machine import memory_limit_bytes
from core.sandbox import confined

BATCH_TIME_S = 0.45  # a batch can't be interrupted, and Stop may have to wait for two
FIRST_BATCH, MIN_BATCH, MAX_BATCH = 128, 16, 2048
# A token of each reply is in every batch, which must have room for prompts beside them.
MAX_SLOTS, TOKENS_PER_SLOT = 16, 4
PROBE_TOKENS = 64
START_TIMEOUT_S = 600  # a large file on a slow disk
GONE_S = 2.0  # from a connection that breaks to the end of the server's log
KILLED = 128 + 9  # the guard's exit code after SIGKILL


def find_binary() -> Path | None:
    """llama-server as the wheel installs it, if it was built with llama.cpp's tools."""
    name = "llama-server.exe" if sys.platform == "win32" else "llama-server"
    path = Path(sysconfig.get_path("purelib")) / "bin" / name
    return path if path.is_file() else None


def _slots(batch: int) -> int:
    return min(MAX_SLOTS, batch // TOKENS_PER_SLOT)


class LlamaServerEngine:
    """A GGUF loaded by a llama-server of our own. Starting raises ModelFileError with the server's reason."""

    label = "llama-server"

    def __init__(
        self,
        path: Path,
        n_ctx: int,
        n_threads: int,
        adapters: Sequence[Adapter] = (),
        n_cells: int = 0,
        kept_prompt_bytes: int = 0,
        cancelled: Callable[[], bool] = wanted,
        overrides: Mapping[str, int] | None = None,
    ) -> None:
        self.n_ctx = n_ctx
        self.shown: Mapping[str, int] = {}
        self.n_cells = max(n_ctx, n_cells)
        self._path, self._n_threads, self._adapters = path, n_threads, adapters
        self._overrides, self._kept_prompt_bytes = overrides or {}, kept_prompt_bytes
        self.batch, self.slots = FIRST_BATCH, _slots(FIRST_BATCH)
        self._process: child.Process | None = None
        with self._killed_when(cancelled):
            self._start()
            # The server caps what it is asked for at the model's own limits.
            properties = self._request("GET", "/props")
            self.n_ctx = min(n_ctx, properties["default_generation_settings"]["n_ctx"])

    def settle(self, cancelled: Callable[[], bool] = wanted) -> None:
        """Start again with a batch that this machine evaluates in BATCH_TIME_S, if that is another one."""
        with self._killed_when(cancelled):
            if (batch := self._measured_batch()) != self.batch:
                self.close()
                self.batch, self.slots = batch, _slots(batch)
                self._start()

    @contextmanager
    def _killed_when(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Kill the server while it starts as soon as `cancelled` says so: nothing then waits any longer."""
        done, killed = threading.Event(), threading.Event()

        def watch() -> None:
            while not done.wait(LOOK_AGAIN_S):
                if cancelled():
                    killed.set()
                    self._kill()

        watcher = threading.Thread(target=watch, name="llama-server start", daemon=True)
        watcher.start()
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, ChatError) and cancelled():
                raise LoadCancelled(f"Stopped while {self._path.name} was being loaded.") from None
            raise
        finally:
            done.set()
            watcher.join()
        if killed.is_set():  # after the last thing that was asked of it
            self.close()
            raise LoadCancelled(f"Stopped while {self._path.name} was being loaded.")

    def _start(self) -> None:
        key = secrets.token_urlsafe(32)  # through the environment: a command line is everyone's to read
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.log: deque[str] = deque(maxlen=300)
        files: list[Path | str] = [*parts(self._path), *(adapter.path for adapter in self._adapters)]
        command = confined(self._command(), files, memory_limit_bytes())
        self._process = child.guarded(command, {"LLAMA_API_KEY": key})
        self._ready = threading.Event()
        self.port = 0
        self._reader = threading.Thread(
            target=self._read_log, args=(self._process,), name="llama-server log", daemon=True
        )
        self._reader.start()
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
            "--ctx-size": self.n_cells,  # shared by all slots: see `Host.admit`
            "--kv-unified-per-slot": self.n_ctx,
            "--parallel": self.slots,
            "--threads": self._n_threads,
            "--threads-http": self.slots + 2,
            "--batch-size": self.batch,
            "--ubatch-size": self.batch,
            # It isn't keyed by adapter: the prompt of a chat with one would be taken for a chat without.
            "--cache-ram": 0 if self._adapters else self._kept_prompt_bytes >> 20,
            "--chat-template": "chatml",
            "--log-colors": "off",
        }
        if comma := next((a.path for a in self._adapters if "," in a.path), ""):
            raise ModelFileError(
                f"llama-server takes the comma in {comma!r} for the end of a name; rename it."
            )
        # They apply from the start, so each request has to say how strongly, and for all: `completion` does.
        adapters = [word for a in self._adapters for word in ("--lora", a.path)]
        overrides = [
            word for key, i in self._overrides.items() for word in ("--override-kv", f"{key}=int:{i}")
        ]
        switches = ["--no-ui", "--no-slots", "--offline", "--no-context-shift", "--kv-unified"]
        return [
            str(binary),
            *(str(word) for pair in options.items() for word in pair),
            *switches,
            *adapters,
            *overrides,
        ]

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
        probe = Request(vocabulary[:PROBE_TOKENS], Sampling(temperature=0, seed=0))
        request = completion(probe, strengths(self._adapters, {}), 1, stream=False)
        speeds: list[float] = []
        while len(speeds) < 2 and max([0, *speeds]) * BATCH_TIME_S < FIRST_BATCH:
            # The first one also brings the weights from the disk: a second one may be faster.
            timings = self._request("POST", "/completion", request)["timings"]
            speeds.append(timings["prompt_per_second"] or 1.0)
        batch = MIN_BATCH
        while batch * 2 <= min(max(speeds) * BATCH_TIME_S, MAX_BATCH):
            batch *= 2
        # A step up is within what a busy machine misjudges, and not worth a second start.
        return batch if batch < FIRST_BATCH or batch > FIRST_BATCH * 2 else FIRST_BATCH

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text`, no BOS added."""
        body = json.dumps({"content": text, "add_special": False, "parse_special": special})
        tokens: list[int] = self._request("POST", "/tokenize", body)["tokens"]
        return tokens

    def _request(self, method: str, path: str, body: str | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path, body, self.headers)
            response = connection.getresponse()
            if response.status != 200:
                raise refusal(response)
            return json.load(response)
        except (OSError, http.client.HTTPException) as error:
            raise self.died() from error
        finally:
            connection.close()

    def generate(self, request: Request) -> LlamaServerGeneration:
        """Start a reply; a free slot takes it, or the first that becomes free."""
        ids = request.ids
        if not ids or len(ids) >= self.n_ctx:
            raise ChatError(f"A prompt of {len(ids)} tokens does not fit a context of {self.n_ctx} tokens.")
        scales = strengths(self._adapters, request.adapters)
        return LlamaServerGeneration(self, replace(request, sampling=request.sampling.seeded()), scales)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _kill(self) -> None:
        """Have the guard kill the server, and don't wait for that."""
        if self._process and self._process.stdin:
            self._process.stdin.close()

    def close(self) -> None:
        """End the child; the kernel takes its memory back."""
        self._kill()
        if self._process:
            self._process.wait()

    def died(self) -> EngineDied:
        """The error for a reply that the server did not finish."""
        closed = self._process and self._process.stdin and self._process.stdin.closed
        reason = "the model was unloaded" if closed else self._reason()
        return EngineDied(f"The model's process stopped in the middle of a reply ({reason}). Retry the turn.")

    def _reason(self) -> str:
        """Why the server ended, when its log is complete."""
        self._reader.join(GONE_S)
        if self._reader.is_alive() or self._process is None:
            return "llama-server is there but does not answer"
        if reason := first_reason(server_errors(list(self.log))):
            return reason
        code = self._process.wait()  # its log has ended: so has it
        if code == KILLED:
            return "the system killed llama-server; the memory may be too small"
        return f"llama-server ended with code {code} and gave no reason"
