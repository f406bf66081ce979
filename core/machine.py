"""What this machine allows: memory and threads, as control group, affinity and hardware set them.

A container's limits are invisible to os.cpu_count(), to /proc/meminfo and to llama.cpp: eight threads on a
quota of four cores can make a model forty times slower. `root` is the file system to look at, for tests.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from core.errors import ModelFileError

Verdict = Literal["fits", "tight", "too big"]

# Beside weights and KV cache: the compute buffers of a 512-token batch (about 300 MB with a vocabulary of
# 256,000), the app itself (160 MB) and Python's libraries.
OVERHEAD_BYTES = 600_000_000
TIGHT_SHARE = 0.8
# Chats are seldom full: a cache for four full ones holds a dozen.
MORE_CHATS_SHARE, CHATS_IN_FULL = 0.1, 4
KEPT_CHATS = 6  # one, and five others that came after it
LOOK_S = 0.2  # 20 ticks of a core's clock

_ROOT = Path("/")
_trim, _tune = (
    getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    for name in ("malloc_trim", "mallopt")
)
_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h


def give_back() -> None:
    """Give the system back what was freed: glibc keeps it, and what comes next takes its own beside it."""
    if _trim:
        _trim(0)


def one_heap() -> None:
    """Let all threads that are yet to come share one heap, where `give_back` finds all that is free.

    Else each has another one, as with models that are loaded and run by threads of their own, and the free
    end of that stays: up to 64 MB.
    """
    if _tune:
        _tune(_ARENA_MAX, 1)


def human_size(size: int) -> str:
    """Return `size` bytes in decimal units, as the hub shows them: '98 MB', '2.4 GB'."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"


def verdict(size_bytes: int, kv_bytes_per_token: int, n_ctx: int, root: Path = _ROOT) -> Verdict:
    """Judge whether a model of `size_bytes` with a context of `n_ctx` tokens runs on this machine.

    Against the limit, not against what is free now: the model that is loaded makes room for the next one.
    """
    limit = memory_limit_bytes(root)
    needed = model_bytes(size_bytes, kv_bytes_per_token, n_ctx)
    if needed > limit:
        return "too big"
    return "tight" if needed > TIGHT_SHARE * limit else "fits"


def model_bytes(size_bytes: int, kv_bytes_per_token: int, tokens: int) -> int:
    """Return what a model of `size_bytes` takes with a cache for `tokens` tokens and its compute buffers."""
    return size_bytes + kv_bytes_per_token * tokens + OVERHEAD_BYTES


def bytes_for_models(held: int, root: Path = _ROOT) -> int:
    """Return the bytes that all models together may take, of which those that are loaded hold `held`.

    As much as the limit allows without being tight, and no more than other programs leave.
    """
    return min(int(TIGHT_SHARE * memory_limit_bytes(root)), held + available_bytes(root))


def shared_cells(size_bytes: int, kv_bytes_per_token: int, n_ctx: int, root: Path = _ROOT) -> int:
    """Return for how many tokens a cache should be that several chats of `n_ctx` tokens share.

    One chat always has its whole context; what the others add takes a tenth of the memory at most, and less
    where it would become tight.
    """
    limit = memory_limit_bytes(root)
    room = TIGHT_SHARE * limit - model_bytes(size_bytes, kv_bytes_per_token, n_ctx)
    more = max(0, int(min(room, MORE_CHATS_SHARE * limit))) // max(1, kv_bytes_per_token)
    return n_ctx + min(more, (CHATS_IN_FULL - 1) * n_ctx)


def kept_prompt_bytes(
    size_bytes: int, kv_bytes_per_token: int, n_ctx: int, cells: int, root: Path = _ROOT
) -> int:
    """Return how much memory may keep the prompts of chats that have no place in a cache of `cells` tokens.

    As much as KEPT_CHATS full ones take, for llama-server moves there what isn't being answered, under the
    bounds of `shared_cells`. Its own default of 8 GiB has filled machines.
    """
    limit = memory_limit_bytes(root)
    room = TIGHT_SHARE * limit - model_bytes(size_bytes, kv_bytes_per_token, cells)
    return max(0, int(min(room, MORE_CHATS_SHARE * limit, KEPT_CHATS * n_ctx * kv_bytes_per_token)))


def check_fits(name: str, size_bytes: int, kv_bytes_per_token: int, n_ctx: int) -> None:
    """Raise ModelFileError if the model `name`, with a context of `n_ctx` tokens, does not run here."""
    if verdict(size_bytes, kv_bytes_per_token, n_ctx) == "too big":
        needed = human_size(size_bytes + kv_bytes_per_token * n_ctx)
        raise ModelFileError(
            f"{name} needs {needed} for its file and a context of {n_ctx:,} tokens; this machine allows "
            f"{human_size(memory_limit_bytes())} in all. Choose a smaller model or quantisation."
        )


def memory_limit_bytes(root: Path = _ROOT) -> int:
    """Return the memory that this process may use: its control groups' smallest limit, or all there is."""
    limits = [
        limit
        for group in _memory_groups(root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(group / name)) is not None
    ]
    return min([*limits, _physical_bytes(root)])  # v1 writes a huge number for "no limit"


def available_bytes(root: Path = _ROOT) -> int:
    """Return the memory that is free for us now. Page cache counts as free: the kernel gives it up."""
    free = [_meminfo(root).get("MemAvailable", _physical_bytes(root))]
    for group in _memory_groups(root):
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        cache_key = "inactive_file"
        if limit is None:
            limit, used = _number(group / "memory.limit_in_bytes"), _number(group / "memory.usage_in_bytes")
            cache_key = "total_inactive_file"
        if limit is not None and used is not None:
            free.append(limit - used + _table(group / "memory.stat").get(cache_key, 0))
    return max(0, min(free))


def thread_count(root: Path = _ROOT) -> int:
    """Return how many threads should compute: the cores we may use, the quota rounded down, at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    count = min(len(allowed), _physical_cores(root, allowed) or len(allowed))
    for quota in _cpu_quotas(root):
        count = min(count, int(quota))
    return max(1, count)


def idle_thread_count(root: Path = _ROOT, wait: Callable[[], None] = lambda: time.sleep(LOOK_S)) -> int:
    """Return how many threads should compute beside other programs: those that are idle now.

    Threads that share a model wait for each other after each of its operations, and where another program
    has one of their cores, they wait for that: on two busy cores, two threads of llama.cpp took 8 times as
    long as one for a prompt, and 20 times for a reply.
    """
    before = _idle_and_all(root)
    wait()
    idle, both = (now - then for now, then in zip(_idle_and_all(root), before, strict=True))
    return max(1, int(thread_count(root) * (idle / both if both > 0 else 1) + 0.25))


def _idle_and_all(root: Path) -> tuple[int, int]:
    """The ticks that the cores we may use have been idle since the start, and all; zeros where none tells."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    lines = [line.split() for line in _read(root / "proc/stat").splitlines()]
    cores = [list(map(int, line[1:9])) for line in lines if line and line[0] in {f"cpu{i}" for i in allowed}]
    return sum(ticks[3] + ticks[4] for ticks in cores), sum(map(sum, cores))


def _physical_cores(root: Path, allowed: set[int]) -> int:
    """Count cores, not hyperthreads: two threads that share an arithmetic unit only wait for one another.

    0 where /sys doesn't tell.
    """
    cores = {
        _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or f"cpu {cpu}"
        for cpu in allowed
        if (root / f"sys/devices/system/cpu/cpu{cpu}").is_dir()
    }
    return len(cores)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)
        v1_quota, v1_period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if v1_quota is not None and v1_period:
            yield v1_quota / v1_period


def _memory_groups(root: Path) -> Iterator[Path]:
    return _groups(root, "memory")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of our control group and of those above it: each may set a limit.

    Inside a container the path in /proc/self/cgroup is often the host's and absent here; then only the
    top folder, which is the container's own, is left.
    """
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base = mount / "unified" if (mount / "unified").is_dir() else mount
        elif controller in controllers.split(","):
            base = mount / controller if (mount / controller).is_dir() else mount / controllers
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            if (group := base.joinpath(*parts[:depth])).is_dir():
                yield group


def _physical_bytes(root: Path) -> int:
    total = _meminfo(root).get("MemTotal")
    if total is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS has no /proc
    return total if total is not None else 8 * 2**30  # Windows: the stdlib can't tell


def _meminfo(root: Path) -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    return {key.rstrip(":"): kib * 1024 for key, kib in _table(root / "proc/meminfo").items()}


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    rows = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    """Return the number in a file; None for a missing file, for 'max' and for -1."""
    text = _read(path)
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
