"""Limits that a worker sets itself before it touches what strangers wrote: memory, files, core dumps.

Covered on Linux and macOS: files and core dumps; on Linux: memory. Elsewhere the parent's clock is the only
limit.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def limit_this_process(memory_bytes: int, open_files: int | None = None) -> None:
    """Allow `memory_bytes` above what the process has now, no writing of files, and at most `open_files`."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if open_files is not None:
        limits[resource.RLIMIT_NOFILE] = open_files
    with suppress(OSError):  # not on macOS, which doesn't enforce the limit on memory either
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + memory_bytes
    for limit, value in limits.items():
        with suppress(OSError, ValueError):  # a lower limit is set from outside
            resource.setrlimit(limit, (value, value))
