"""The tokenizer of a model that runs elsewhere: that of a GGUF here, and whether the engine has the same.

llama.cpp's own, in a process with limits. No weights are read: a file that holds only a vocabulary will do.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from chat.remote import Endpoint
from core.child import Process, killed_after, worker
from core.errors import ChatError
from core.gguf_model import GgufFile, read_gguf
from core.gguf_vocab import LIMIT_S

# Digits, spaces, code, accents (composed), other scripts and an emoji: where vocabularies differ.
PROBE = "In 1984, 3.14159 & 1,000,000:\n\n  def f(x):\n\treturn x**2  # don't\n" + (
    "\u00c9t\u00e9, gr\u00fc\u00df; \u041f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d "
    "\u3053\u3093 \u0645\u0631\u062d\u0628\u0627 \U0001f600"
)
MOST_MARKS = 16  # of a template's control tokens that are compared


class Tokenizer:
    """Tokenises as llama.cpp does with the vocabulary of `path`. Raises ChatError (ModelFileError)."""

    def __init__(self, path: Path) -> None:
        self.file: GgufFile = read_gguf(path)
        self._process: Process | None = None
        self._lock = threading.Lock()

    def __call__(self, text: str, special: bool) -> list[int]:
        """Ids of `text`, no BOS added; `special` lets the surface of a control token become that token."""
        line = json.dumps([text.encode("utf-8", "replace").decode(), special]).encode() + b"\n"
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = worker(
                    ["-m", "core.vocab_worker", str(self.file.path.absolute()), "--tokenize"]
                )
                self._ask(self._process, b"")  # what it says of the vocabulary
            found: list[int] = self._ask(self._process, line)
        return found

    def _ask(self, process: Process, line: bytes) -> Any:
        assert process.stdin
        assert process.stdout
        try:
            with killed_after(process, LIMIT_S):
                process.stdin.write(line)
                process.stdin.flush()
                return json.loads(process.stdout.readline())
        except (OSError, ValueError):
            self._end(process)
            raise ChatError(f"The tokenizer of {self.file.path.name} took too long, or crashed.") from None

    def _end(self, process: Process) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()

    def close(self) -> None:
        if process := self._process:
            self._process = None
            self._end(process)


def difference(tokenizer: Tokenizer, endpoint: Endpoint, model: str) -> str:
    """Return why the ids of the vocabulary here can't be sent to `model` there; empty when they can.

    Ordinary text must give the same ids, and each mark of the chat template the same token. Raises ChatError.
    """
    here, there = tokenizer(PROBE, False), endpoint.tokenize(model, PROBE)
    if here != there:
        return f"its tokenizer isn't that of {tokenizer.file.path.name}"
    template = tokenizer.file.chat_template or ""
    marks = [mark for mark in tokenizer.file.vocab.control if mark in template]
    for mark in marks[:MOST_MARKS]:
        if tokenizer.file.vocab.control[mark] not in endpoint.tokenize(model, mark):
            return f"its token {mark} isn't that of {tokenizer.file.path.name}"
    return ""
