"""Limits read from made-up /sys and /proc trees: containers of both kinds, quotas, hyperthreads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.machine import (
    available_bytes,
    human_size,
    idle_thread_count,
    kept_prompt_bytes,
    memory_limit_bytes,
    thread_count,
    verdict,
)

GIB = 2**30
MEMINFO = f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, {"proc/meminfo": MEMINFO})
    return tmp_path


def put(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def test_without_control_groups_the_hardware_counts(root: Path) -> None:
    assert memory_limit_bytes(root) == 16 * GIB
    assert available_bytes(root) == 8 * GIB


def test_a_machine_without_proc_still_answers(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) > GIB
    assert thread_count(tmp_path) >= 1


def test_version_2_inside_a_container(root: Path) -> None:
    put(
        root,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": 4 * GIB,
            "sys/fs/cgroup/memory.current": 3 * GIB,
            "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file 5",
            "sys/fs/cgroup/cpu.max": "150000 100000",
        },
    )
    assert memory_limit_bytes(root) == 4 * GIB
    assert available_bytes(root) == 3 * GIB  # page cache is given back when needed
    assert thread_count(root) == 1


def test_version_2_takes_the_smallest_limit_on_the_way_up(root: Path) -> None:
    put(
        root,
        {
            "proc/self/cgroup": "0::/user.slice/app.scope",
            "sys/fs/cgroup/user.slice/memory.max": 2 * GIB,
            "sys/fs/cgroup/user.slice/app.scope/memory.max": "max",
            "sys/fs/cgroup/user.slice/app.scope/cpu.max": "max 100000",
        },
    )
    assert memory_limit_bytes(root) == 2 * GIB


def test_version_1_with_a_host_path_that_is_not_here(root: Path) -> None:
    put(
        root,
        {
            "proc/self/cgroup": "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n1:name=systemd:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 3 * GIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 2 * GIB,
            "sys/fs/cgroup/memory/memory.stat": f"cache 7\ntotal_inactive_file {GIB // 2}",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 50000,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
        },
    )
    assert memory_limit_bytes(root) == 3 * GIB
    assert available_bytes(root) == 3 * GIB // 2
    assert thread_count(root) == 1  # half a core rounds down to none, but one must compute


def test_version_1_without_a_limit(root: Path) -> None:
    put(
        root,
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
        },
    )
    assert memory_limit_bytes(root) == 16 * GIB
    assert thread_count(root) >= 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is Linux's")
def test_hyperthreads_of_one_core_count_once(root: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    put(root, {topology.format(cpu): "0-999" for cpu in cpus})
    assert thread_count(root) == 1
    put(root, {topology.format(cpu): cpu for cpu in cpus})
    assert thread_count(root) == len(cpus)


def test_garbage_in_the_files_is_ignored(root: Path) -> None:
    put(root, {"proc/self/cgroup": "nonsense\n0::/", "sys/fs/cgroup/memory.max": "lots"})
    put(root, {"sys/fs/cgroup/cpu.max": "1 0"})
    assert memory_limit_bytes(root) == 16 * GIB
    assert thread_count(root) >= 1


@pytest.mark.parametrize(
    ("size", "kv", "n_ctx", "expected"),
    [
        (98_362_432, 23_040, 8192, "fits"),
        (13_000_000_000, 131_072, 8192, "tight"),
        (4_370_000_000, 131_072, 131_072, "too big"),
        (20_000_000_000, 0, 256, "too big"),
    ],
)
def test_the_verdict_counts_file_cache_and_overhead(
    root: Path, size: int, kv: int, n_ctx: int, expected: str
) -> None:
    assert verdict(size, kv, n_ctx, root) == expected


def test_prompts_are_kept_where_that_fills_no_machine(root: Path) -> None:
    small, large = (100_000_000, 23_000, 4096), (4_000_000_000, 131_072, 8192)
    assert kept_prompt_bytes(*small, cells=4 * 4096, root=root) == 6 * 4096 * 23_000
    assert kept_prompt_bytes(*large, cells=8192, root=root) == int(0.1 * 16 * GIB)
    put(root, {"proc/meminfo": MEMINFO.replace(str(16 * GIB // 1024), str(6 * GIB // 1024))})
    assert kept_prompt_bytes(*large, cells=8192, root=root) == 0


def test_sizes_are_written_as_the_hub_writes_them() -> None:
    assert [human_size(n) for n in (98_362_432, 810_000_000, 2_390_000_000)] == [
        "98.4 MB",
        "810 MB",
        "2.4 GB",
    ]


def test_cores_that_others_use_compute_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})

    def threads(*idle: int) -> int:
        """With so many of 20 ticks idle on each core; one more, which isn't ours, is busy."""
        put(
            root, {"proc/stat": "cpu 0 0 0 0\n" + "\n".join(f"cpu{i} 5 0 5 70 9 0 0 0 0 0" for i in range(5))}
        )
        now = [f"cpu{i} {25 - ticks} 0 5 {70 + ticks} 9 0 0 0 0 0" for i, ticks in enumerate((*idle, 0))]
        return idle_thread_count(root, lambda: put(root, {"proc/stat": "\n".join(now)}))

    assert threads(20, 20, 20, 20) == 4
    assert threads(19, 18, 20, 19) == 4
    assert threads(20, 0, 20, 0) == 2
    assert threads(12, 10, 9, 8) == 2
    assert threads(0, 0, 0, 0) == 1
    assert idle_thread_count(root, lambda: None) == 4
    (root / "proc" / "stat").unlink()
    assert idle_thread_count(root, lambda: None) == 4
