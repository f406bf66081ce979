"""A study's cells, one after the other or by several processes, each kept as soon as it is measured."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from core.errors import ChatError
from studies.results import Results


@dataclass(frozen=True)
class Cell:
    """One thing to measure. `work` goes to another process where there are several, so it can be pickled."""

    key: str
    work: Callable[[], Any]
    lane: str = ""  # cells of one lane follow each other in one process, which may keep what they share;
    # without one, in any
    alone: bool = False  # it is timed: nothing else runs meanwhile, and it runs in this process


class Runner:
    """Does what isn't there yet; `failed` counts the cells that couldn't be measured."""

    def __init__(self, results: Results, until: float = math.inf, workers: int = 1) -> None:
        """No cell begins that would end after `until` (of time.monotonic), if it takes as long as the
        longest so far. With several `workers`, a lane is a process, and there are at most so many."""
        self.results, self.until, self.workers = results, until, workers
        self.failed, self._longest = 0, 0.0
        self._lanes: dict[str, ProcessPoolExecutor] = {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._lanes.values():
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def over(self) -> bool:
        """Whether there is no time for another cell."""
        return time.monotonic() + self._longest > self.until

    def do(self, cells: Iterable[Cell]) -> None:
        """Do these cells, those that are timed first; the next ones begin when all have ended."""
        left = [cell for cell in cells if not self.results.done(cell.key)]
        for cell in left:
            if (cell.alone or self.workers == 1) and not self.over:
                began = time.monotonic()
                self._keep(cell.key, cell.work, began)
        if self.workers > 1:
            self._side_by_side([cell for cell in left if not cell.alone])

    def _side_by_side(self, waiting: list[Cell]) -> None:
        running: dict[Future[Any], tuple[str, str, float]] = {}
        while waiting or running:
            busy = {lane for _, lane, _ in running.values()}
            for cell in list(waiting):
                if self.over:
                    waiting.clear()
                    break
                lane = cell.lane or next(n for n in map(str, range(len(busy) + 1)) if n not in busy)
                if lane not in busy and len(busy) < self.workers:
                    busy.add(lane)
                    waiting.remove(cell)
                    running[self._process(lane).submit(cell.work)] = cell.key, lane, time.monotonic()
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                key, lane, began = running.pop(future)
                self._keep(key, future.result, began)
                if isinstance(future.exception(), RuntimeError):  # its process may have died, or hold memory
                    self._lanes.pop(lane).shutdown(wait=False)

    def _process(self, lane: str) -> ProcessPoolExecutor:
        if lane not in self._lanes:
            self._lanes[lane] = ProcessPoolExecutor(1, get_context("spawn"))
        return self._lanes[lane]

    def _keep(self, key: str, work: Callable[[], Any], began: float) -> None:
        """Keep what a cell measured; one that fails is told of, and the others go on."""
        try:
            self.results.put(key, work())
        except (ChatError, RuntimeError) as error:  # the second: PyTorch's, and of a process that died
            self.failed += 1
            print(f"error: {key}: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
            return
        took = time.monotonic() - began
        self._longest = max(self._longest, took)
        print(f"{key.replace('|', ' ')}: {took:.1f} s", flush=True)
