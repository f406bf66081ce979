"""Renders any model's chat template within limits: a child process does it, and is killed when it loops."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import suppress

from core.child import killed_after, worker
from core.errors import TemplateError
from core.prompt import Messages
from core.template_worker import TIME_LIMIT_S

START_LIMIT_S = 20.0  # on a machine that is busy loading a model
GRACE_S = 0.5  # the worker's own clock goes first


class TemplateRenderer:
    """Renders templates one at a time, from any thread; a template that breaks the worker breaks no other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def render(
        self,
        template: str,
        messages: Messages,
        add_generation_prompt: bool,
        bos: str,
        eos: str,
        now: str = "",
    ) -> str:
        """Do what `core.prompt.render` does. Raises TemplateError, after 3 seconds at the latest."""
        request = {
            "template": template,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos": bos,
            "eos": eos,
            "now": now,
        }
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            if self._worker is None or not self._worker.alive():
                self._stop()
                self._worker = _Worker()
            answer = self._worker.ask(line)
        if "text" not in answer:
            raise TemplateError(answer["error"])
        return answer["text"]

    def close(self) -> None:
        """End the child process, a render included; the next render starts another one."""
        if (running := self._worker) is not None:
            running.kill()  # so that nobody holds the lock for long
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


class _Worker:
    """One child process; its answers are dicts with `text` or `error`."""

    def __init__(self) -> None:
        self._process = worker(["-m", "core.template_worker"])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._late = False
        self._in_step = self._read(START_LIMIT_S) is not None
        if not self._in_step:
            self.stop()
            raise TemplateError(
                "The process that renders chat templates did not start; "
                "'python -m core.template_worker' shows the reason."
            )

    def alive(self) -> bool:
        """Whether another request can be made: the last one was answered, and no clock has run out."""
        return self._in_step and not self._late and self._process.poll() is None

    def ask(self, line: bytes) -> dict[str, str]:
        """Return the answer to one request; there always is one."""
        self._in_step = False
        with suppress(BrokenPipeError):  # then there is no answer to read
            self._stdin.write(line)
            self._stdin.flush()
        answer = self._read(TIME_LIMIT_S + GRACE_S)
        if answer is None:
            return {"error": self._cause_of_death()}
        self._in_step = "fatal" not in answer
        return answer

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        with suppress(OSError):  # what it never read is flushed to nobody
            self._stdin.close()
        self._stdout.close()

    def _read(self, limit_s: float) -> dict[str, str] | None:
        """Read one answer; none when the process ended, or was killed because `limit_s` was over."""
        with killed_after(self._process, limit_s) as late:
            line = self._stdout.readline()
        self._late |= late.is_set()
        answer: dict[str, str] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        if self._late or code == -getattr(signal, "SIGALRM", 0):
            limit = f"{TIME_LIMIT_S:.0f} seconds"
            return f"This model's chat template ran longer than {limit} and was stopped. Use another file."
        return f"This model's chat template crashed the process that renders it ({code}). Use another file."
