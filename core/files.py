"""Files that are either whole or not there: written beside, renamed last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield `<path>.partial` to write to; it becomes `path` when the block ends well, else it goes."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write to a full disk names no file
            error.filename = str(path)
        raise
    partial.replace(path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `path` whole; text is UTF-8 with its line ends as they are."""
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
