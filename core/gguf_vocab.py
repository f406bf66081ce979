"""A vocabulary: its special tokens, and the Unicode form that its tokenizer brings text into first.

The tokens are those that llama.cpp itself has: a child process loads the vocabulary and is asked. The form is
what llama.cpp leaves out. Qwen's and Cohere's compose accents (NFC): an e and a combining acute become one
letter. A GGUF made here notes the form under a key of its own, and the chat brings text into it. Other
programs don't know the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from unicodedata import is_normalized, normalize

from core.child import Process, killed_after, worker
from core.engine import first_reason, server_errors
from core.errors import ModelFileError

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


Form = Literal["", "NFC", "NFD", "NFKC", "NFKD"]  # "" leaves text as it is
FORMS: tuple[Form, ...] = get_args(Form)
Tokenize = Callable[[str, bool], Sequence[int]]  # text, and whether special tokens are parsed, to ids

FORM_KEY = "tune2chat.unicode_form"  # of a GGUF's metadata
SPACE = "\u2581"  # sentencepiece's space, which llama.cpp also puts in, and before a text
# Letters composed and apart, marks out of order, compatibility forms, capitals, spaces inside and at the end.
PROBES = (
    "Two  SPACES \t\u00e9 e\u0301 a\u0308\u0323 \u1e9b\u0323 ``\ufb01'' \u2460\uff21  ",
    "\u1112\u1161\u11ab \uac00 ",
)


def form_of(tokenizer: Any) -> Form | None:
    """The form of a tokenizer of transformers, by what its normalizer does to text.

    None where it changes text in another way, say to lower case.
    """
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return ""
    changed = [normalizer.normalize_str(text).replace(SPACE, " ").removeprefix(" ") for text in PROBES]
    return next((f for f in FORMS if changed == [normalize(f, t) if f else t for t in PROBES]), None)


def form_named(value: object) -> Form:
    """The form that a file names; none where it is no such name."""
    return next((form for form in FORMS if form == value), "")


def in_form(tokenize: Tokenize, form: Form, surfaces: Iterable[str]) -> Tokenize:
    """Let `tokenize` have text in `form` only; the `surfaces` of control tokens stay apart from what follows.

    As in transformers, where a mark that combines with a token's last letter doesn't take the token away.
    """
    if not form:
        return tokenize
    names = "|".join(map(re.escape, sorted(surfaces, key=len, reverse=True)))
    token = re.compile(f"({names or '(?!)'})")

    def formed(text: str, special: bool) -> Sequence[int]:
        if is_normalized(form, text):
            return tokenize(text, special)
        pieces = token.split(text) if special else [text]  # every other one is a token
        return tokenize("".join(p if i % 2 else normalize(form, p) for i, p in enumerate(pieces)), special)

    return formed
