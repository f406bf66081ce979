"""Files that are either whole or not there: written beside, renamed last. And what is in them, as a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def file_hash(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, computed side by side: a base has many gigabytes. Raises OSError."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(file_hash, paths))
