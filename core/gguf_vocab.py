"""The special tokens of a vocabulary, as llama.cpp itself has them: a child process loads it and is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.child import Process, killed_after, worker
from core.errors import ModelFileError
from core.llama_log import first_reason, server_errors

LIMIT_S = 60.0  # the largest vocabularies take 2 s of computing
KEPT = 16  # answers

# Some files give the marks of their template the type USER_DEFINED, and llama.cpp gives it to gpt-oss's,
# which the second pattern knows by their look: it finds those in plain text too.
_MARK = re.compile(r"[<\[]\S+[>\]]")
_MARK_ANYWHERE = re.compile(r"<\|\S+\|>")
_SOURCES = re.compile(r"/\S*/(?=[\w-]+\.(?:cpp|h):\d)")  # the folder where llama.cpp was built
_THINKING = ("<think>", "</think>")  # the model's own words, not a mark between speakers

_answers: dict[tuple[Path, int, int], Vocab] = {}


@dataclass(frozen=True)
class Vocab:
    """The special tokens of one vocabulary."""

    size: int
    bos_id: int | None
    eos_id: int | None
    bos: str  # empty where there is no such token
    eos: str
    add_bos: bool
    control: dict[str, int]  # surface -> id of all that tokenising with special tokens off must never yield
    eog_ids: frozenset[int]


@contextmanager
def asking(path: Path, template: str) -> Iterator[Callable[[], Vocab]]:
    """Have llama.cpp read the vocabulary of the model at `path` beside what is done inside.

    Yields what waits for the answer, which is kept for as long as the file stays as it is; `template` is the
    model's own. Waiting raises ModelFileError with llama.cpp's reason, also where it crashed.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise ModelFileError(f"{path.name} can't be read: {error.strerror}") from None
    key = (path.absolute(), state.st_size, state.st_mtime_ns)
    if key in _answers:
        yield lambda: _answers[key]
        return
    process = worker(["-m", "core.vocab_worker", str(key[0])])

    def answer() -> Vocab:
        if key not in _answers:
            found = _vocab(_read(process, path.name), template)
            while len(_answers) >= KEPT:
                del _answers[next(iter(_answers))]
            _answers[key] = found
        return _answers[key]

    try:
        yield answer
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def read_vocab(path: Path, template: str) -> Vocab:
    """Wait for the answer at once; see `asking`."""
    with asking(path, template) as answer:
        return answer()


def _vocab(answer: dict[str, Any], template: str) -> Vocab:
    def is_mark(text: str) -> bool:
        between_speakers = _MARK.fullmatch(text) and text in template and text not in _THINKING
        return bool(between_speakers or _MARK_ANYWHERE.fullmatch(text))

    marks = {text: i for text, i in answer.pop("user_defined").items() if is_mark(text)}
    control = {text: i for text, i in (answer.pop("control") | marks).items() if text}
    return Vocab(control=control, eog_ids=frozenset(answer.pop("eog_ids")), **answer)


def _read(process: Process, name: str) -> dict[str, Any]:
    assert process.stdout is not None
    with killed_after(process, LIMIT_S) as late:
        lines = process.stdout.read().decode("utf-8", "replace").splitlines()
        code = process.wait()
    if code == 0:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    reason = first_reason(server_errors(lines)) or f"llama.cpp crashed on its vocabulary ({code})"
    if late.is_set():
        reason = f"llama.cpp took longer than {LIMIT_S:.0f} seconds to read its vocabulary"
    raise ModelFileError(f"{name} could not be loaded: {_SOURCES.sub('', reason)}")
