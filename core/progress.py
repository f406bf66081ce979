"""Progress bars, one look for all steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int, int], None]  # done, in all


@contextmanager
def bar(title: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Show a bar while the block runs; it is told (done, in all). `unit` "B" counts bytes, "" steps."""
    layout = "{desc:<22}{percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"
    pause = 0.1 if sys.stderr.isatty() else 30  # a log needs few lines
    with tqdm(
        desc=title, unit=unit or "it", bar_format=layout, leave=False, mininterval=pause, delay=2
    ) as shown:

        def tell(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield tell
