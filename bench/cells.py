"""Measurements in cells: done one after the other or by several processes, each kept as soon as it is there.

What was measured so far is one JSON file, whole after each cell, and of one version and settings: who starts
again goes on where it was.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.errors import ChatError
from core.files import read_json, write_json

FILE = "results.json"


class Results:
    """The cells of a study by their keys, in `folder`/results.json."""

    def __init__(self, folder: Path, version: int, settings: dict[str, Any], study: str = "") -> None:
        """Read what is there. Raises ChatError for results of another study or version, or of other settings;
        without its name, of any study."""
        self.path = folder / FILE
        named = {"study": study} if study else {}
        self.content: dict[str, Any] = {"version": version} | named | {"settings": settings, "cells": {}}
        if not self.path.exists():
            return
        found = read_results(folder, version, study)
        if found["settings"] != settings:
            then, now = found["settings"], settings
            apart = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
            said = ", ".join(f"{name} {then.get(name)!r}, and now {now.get(name)!r}" for name in apart)
            raise ChatError(
                f"{self.path} holds results of other settings ({said}): a table of both means nothing. "
                + _cure("--out")
            )
        self.content |= found

    def done(self, key: str) -> bool:
        """Whether the cell is there."""
        return key in self.content["cells"]

    def put(self, key: str, value: Any) -> None:
        """Keep a cell, and write the file whole."""
        self.content["cells"][key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)

    def begin(self, key: str, about: dict[str, Any], name: str, cure: str) -> None:
        """Keep under `key` what the cells that follow are measured by; who goes on has the same `name` (a
        device, a model). Raises ChatError for another one; in the `cure`, {} stands for that of before."""
        with reading(self.path):
            before, now = self.content["cells"].get(key, about)[name], about[name]
            if before != now:
                raise ChatError(
                    f"{self.path} was begun with the {name} {before}, and this is {now}: a table of both "
                    f"means nothing. {cure.format(shlex.quote(before))}, or give another folder: --out FOLDER"
                )
        if not self.done(key):
            self.put(key, about)


def read_results(folder: Path, version: int, study: str = "", option: str = "--out") -> dict[str, Any]:
    """What is in `folder`/results.json, which `option` gave: `version`, `settings`, `cells` and, but for old
    ones, `study`. Raises ChatError, also for those of another study or version."""
    path = folder / FILE
    if not path.exists():
        raise ChatError(f"there is no {path}. {_cure(option)}")
    try:
        found = read_json(path)
    except ChatError as error:
        raise ChatError(f"{error}. {_cure(option)}") from None
    if study and found.get("study", study) != study:
        raise ChatError(
            f"{path} holds results of another study ({found['study']!r}, and this is {study!r}). "
            + _cure(option)
        )
    if found.get("version") != version:
        raise ChatError(
            f"{path} holds results of another version ({found.get('version')!r}, and now {version!r}): "
            f"its figures may mean something else. {_cure(option)}"
        )
    if not all(isinstance(found.get(name), dict) for name in ("settings", "cells")):
        raise ChatError(f"{path} has no settings or no cells. {_cure(option)}")
    return found


@contextmanager
def reading(path: Path, option: str = "--out") -> Iterator[None]:
    """Around what uses the content of `path`, and measures nothing: raise ChatError where it is damaged."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ChatError(
            f"{path} is damaged: something in it is missing, or of another kind ({said}). {_cure(option)}"
        ) from error


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Have the folder, made if need be, for this process alone. Raises ChatError where another has it."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (FileExistsError, NotADirectoryError):
        raise ChatError(f"{folder} is no folder: a file is there. Give another one: --out FOLDER") from None
    except Timeout:
        raise ChatError(
            f"another process measures in {folder} right now. Wait, or give another folder: --out FOLDER"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _cure(option: str) -> str:
    """What to do about a file that can't be used; only where it would be written is it in the way."""
    return f"{'Move it away, or give' if option == '--out' else 'Give'} another folder: {option} FOLDER"


def of_kind(content: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The cells whose keys begin with `kind`/, by the rest of the key."""
    found = content["cells"].items()
    return {key.removeprefix(f"{kind}/"): cell for key, cell in found if key.startswith(f"{kind}/")}


def number(value: float | None) -> float | None:
    """As JSON has it: five digits, and no NaN."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


@dataclass(frozen=True)
class Cell:
    """One thing to measure. `work` goes to another process where there are several, so it can be pickled."""

    key: str
    work: Callable[[], Any]
    alone: bool = False  # it is timed: nothing else runs meanwhile, and it runs in this process


class Runner:
    """Does what isn't there yet; `failed` counts the cells that couldn't be measured."""

    def __init__(
        self,
        results: Results,
        until: float = math.inf,
        workers: int = 1,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """No cell begins that would end after `until` (of time.monotonic), if it takes as long as the last
        ones. Several `workers` are so many processes, each of which begins with `prepare`."""
        self.results, self.until, self.workers, self._prepare = results, until, workers, prepare
        self.failed = 0
        self._took = deque[float](maxlen=workers)
        self._processes: list[ProcessPoolExecutor] = []  # each of one, which may die with its cell
        self._children: list[BaseProcess] = []  # what runs in them, also before it answers

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.is_alive():  # after Ctrl-C it may be in the middle of a cell
                child.terminate()
        self._end(wait=False)

    @property
    def over(self) -> bool:
        """Whether there is no time for another cell."""
        return time.monotonic() + max(self._took, default=0.0) > self.until

    def start(self, most: int) -> None:
        """Start processes for so many cells; their imports take a while, in which other work can be done."""
        while self.workers > 1 and len(self._processes) < min(self.workers, most):
            process = ProcessPoolExecutor(1, get_context("spawn"), partial(_begin, self._prepare))
            others = active_children()
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the new process inherits
            try:
                process.submit(os.getpid)
            finally:
                signal.signal(signal.SIGINT, before)
            self._children += [child for child in active_children() if child not in others]
            self._processes.append(process)

    def do(self, cells: Iterable[Cell]) -> None:
        """Do these cells, those that are timed first; the next ones begin when all have ended."""
        left = [cell for cell in cells if not self.results.done(cell.key)]
        here = [cell for cell in left if cell.alone or self.workers == 1]
        self._took.clear()  # these are of another kind
        if here:
            self._end(wait=True)  # they hold memory
        for cell in here:
            if not self.over:
                self._keep(cell.key, partial(_timed, cell.work))
        if self.workers > 1:
            self._side_by_side([cell for cell in left if not cell.alone])

    def _side_by_side(self, waiting: list[Cell]) -> None:
        running: dict[Future[tuple[float, Any]], tuple[str, ProcessPoolExecutor]] = {}
        while (waiting and not self.over) or running:
            self.start(len(waiting) + len(running))
            busy = {process for _, process in running.values()}
            for process in self._processes:
                if waiting and process not in busy and not self.over:
                    cell = waiting.pop(0)
                    running[process.submit(_timed, cell.work)] = cell.key, process
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key, process = running.pop(future)
                self._keep(key, future.result)
                if isinstance(future.exception(), RuntimeError):  # it may have died, or hold memory
                    self._processes.remove(process)
                    process.shutdown(wait=False)

    def _end(self, wait: bool) -> None:
        for process in self._processes:
            process.shutdown(wait, cancel_futures=True)
        self._processes.clear()

    def _keep(self, key: str, measured: Callable[[], tuple[float, Any]]) -> None:
        """Keep what a cell measured; one that fails is told of, and the others go on."""
        try:
            seconds, value = measured()
        except (ChatError, RuntimeError) as error:  # the second: PyTorch's, and of a process that died
            self.failed += 1
            print(f"error: {key}: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
            return
        self.results.put(key, value)
        self._took.append(seconds)
        print(f"{key.replace('|', ' ')}: {seconds:.1f} s", flush=True)


def _begin(prepare: Callable[[], None] | None) -> None:
    """In a new process: end with the one that started it, which alone answers Ctrl-C."""

    def end_too() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=end_too, daemon=True).start()
    if prepare:
        prepare()


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """What it measured, after the seconds that it took."""
    began = time.monotonic()
    value = work()
    return time.monotonic() - began, value
