"""All rows as token ids, with a bar where it takes long, and then kept in .cache/ for the next run."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.command import ROOT
from core.errors import ChatError, TrainError
from core.files import whole
from core.machine import thread_count
from core.tokenizer import ChatTokenizer
from train.examples import Encoded, Example
from train.labels import encode

CACHE = ROOT / ".cache" / "encoded"
SLOW_S = 2.0  # from here on there is a bar, and the result is worth its file
MANY = 20_000  # rows; from here on all cores work, each with a process that takes seconds to start
KEPT = 4  # files; a set of 122,000 rows takes about 150 MB

# What decides which ids a row becomes: when one of these changes, what was kept is no longer found.
CODE = (
    *("core/prompt.py", "core/template.py", "core/marks.py", "core/reasoning.py", "core/tokenizer.py"),
    "train/labels.py",
)

Numbers = dict[int, int]  # each id as the one object that stands for it


def encode_all(
    tokenizer: ChatTokenizer,
    examples: Sequence[Example],
    assistant_only: bool,
    revision: str | None = None,
    cache: Path = CACHE,
) -> list[list[Encoded]]:
    """Encode each example, in order; `revision` is the tokenizer's. Raises TrainError with the row.

    An example is one sequence, or several: see `train.labels.encode`.
    """
    numbers: Numbers = {}
    path = cache / f"{_key(tokenizer, examples, assistant_only)}.npz"
    if path.is_file():
        return _load(path, examples, numbers)
    began = time.monotonic()
    pause = 0.1 if sys.stderr.isatty() else 30  # a log needs few lines
    encoded: list[list[Encoded]] = []
    with closing(_encode_each(tokenizer, examples, assistant_only, revision)) as rows:
        for row in tqdm(rows, "Encoding", len(examples), leave=False, mininterval=pause, delay=SLOW_S):
            encoded.append([replace(part, ids=_shared(part.ids, numbers)) for part in row])
    if time.monotonic() - began > SLOW_S:
        with suppress(OSError):  # a read-only folder or a full disk costs the next run its time, no more
            _save(path, encoded)
    return encoded


def _shared(ids: list[int], numbers: Numbers) -> list[int]:
    """The same ids, with one object for equal ones: 8 bytes a token instead of 40."""
    return [numbers.setdefault(i, i) for i in ids]


def _encode_each(
    tokenizer: ChatTokenizer, examples: Sequence[Example], assistant_only: bool, revision: str | None
) -> Generator[list[Encoded], None, None]:
    if len(examples) < MANY:
        for example in examples:
            yield _encode(tokenizer, assistant_only, example)
        return
    source = (tokenizer.tokenizer.name_or_path, revision, tokenizer.rendered, assistant_only)
    with _pool(source) as pool:
        yield from pool.imap(_encode_in_worker, examples, chunksize=64)


def _encode(tokenizer: ChatTokenizer, assistant_only: bool, example: Example) -> list[Encoded]:
    try:
        return encode(tokenizer, example, assistant_only)
    except ChatError as error:
        begin = example.text or example.messages[0]["content"]
        number = f"row {example.row:,}, " if example.row else ""
        raise TrainError(f"{number}the row that begins {begin[:60]!r}: {error}") from None


def _pool(source: tuple[str, str | None, str, bool]) -> Pool:
    """Workers that Ctrl-C passes by: it ends the parent, and the parent ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a new process inherits it
    try:
        return multiprocessing.get_context("spawn").Pool(thread_count(), _start_worker, source)
    finally:
        signal.signal(signal.SIGINT, before)


_in_worker: tuple[ChatTokenizer, bool]


def _start_worker(folder: str, revision: str | None, rendered: str, assistant_only: bool) -> None:
    global _in_worker
    _in_worker = ChatTokenizer(folder, revision, rendered), assistant_only


def _encode_in_worker(example: Example) -> list[Encoded]:
    return _encode(*_in_worker, example)


def _key(tokenizer: ChatTokenizer, examples: Sequence[Example], assistant_only: bool) -> str:
    digest = hashlib.sha256()
    digest.update(tokenizer.tokenizer.backend_tokenizer.to_str().encode())
    settings = (tokenizer.template, tokenizer.bos_id, tokenizer.adds_bos, sorted(tokenizer.stop_ids))
    digest.update(repr((*settings, assistant_only)).encode())
    if "strftime_now" in tokenizer.template:  # yesterday's rows have yesterday's date; some write the hour
        shown = tokenizer.render([{"role": "user", "content": "x"}], True)
        digest.update((tokenizer.rendered[:10] + shown).encode())
    for file in CODE:
        digest.update((ROOT / file).read_bytes())
    for example in examples:
        told = (example.messages, example.text, example.prompt, example.rendered, sorted(example.untrained))
        digest.update(repr(told).encode())
    return digest.hexdigest()[:32]


def _save(path: Path, encoded: Sequence[Sequence[Encoded]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [part for row in encoded for part in row]
    with whole(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            sequences=np.array([len(row) for row in encoded], np.int64),
            lengths=np.array([len(part.ids) for part in parts], np.int64),
            turns=np.array([(len(part.messages), part.untrained) for part in parts], np.int64),
            ids=np.fromiter((i for part in parts for i in part.ids), np.int32),
            mask=np.fromiter((m for part in parts for m in part.mask), np.uint8),
        )
    for old in sorted(path.parent.glob("*.npz"), key=lambda file: -file.stat().st_mtime)[KEPT:]:
        old.unlink()


def _load(path: Path, examples: Sequence[Example], numbers: Numbers) -> list[list[Encoded]]:
    with np.load(path, allow_pickle=False) as kept:
        ends = np.cumsum(kept["lengths"])[:-1]
        ids, masks = np.split(kept["ids"], ends), np.split(kept["mask"], ends)
        parts = zip(ids, masks, kept["turns"].tolist(), strict=True)
        sequences = kept["sequences"].tolist()
    return [
        [
            Encoded(_shared(row.tolist(), numbers), mask.tolist(), example.messages[:turns], untrained)
            for row, mask, (turns, untrained) in islice(parts, count)
        ]
        for example, count in zip(examples, sequences, strict=True)
    ]
