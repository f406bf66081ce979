"""What llama-server may do: read its model and its own program, listen on this machine, and no more.

Its code is C++ that reads files which strangers made. On Linux the program below sets limits that a process
can only tighten, and becomes the server: no new privileges (prctl 38), files and TCP by Landlock where the
kernel has it (Documentation/userspace-api/landlock.rst), and the memory that it may write to
(RLIMIT_DATA: a model that is mapped from its file doesn't count). Elsewhere the server runs as it is.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# linux/landlock.h. A later version of the interface knows more rights; each is denied where it is known.
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # numbers of the system calls, the same for all processors
_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE, _DEVICE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _DEVICE  # what can be said of a file that is no folder
_LAST_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14}  # by version; from 5 on 15
_BIND, _CONNECT = 1 << 0, 1 << 1
_PATH, _PORT = 1, 2  # kinds of rules
_NO_NEW_PRIVS, _O_PATH = 38, 0o10000000

# Libraries, the program's own process, what the machine has, and where drivers of GPUs look for themselves.
_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/lib32", "/opt", "/nix/store", "/gnu/store", "/sys", "/proc/self"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/driver", "/proc/modules", "/proc/devices"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/OpenCL", "/etc/vulkan", "/etc/glvnd", "/etc/nvidia"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "dri", "kfd", "nvidia-caps")
_CACHES = (".nv", ".cache/mesa_shader_cache", ".cache/mesa_shader_cache_db")  # of a GPU's drivers, in HOME
_GPUS = ("nvidiactl", "kfd", "dri/renderD128")


def confined(command: list[str], files: Iterable[Path | str], memory_bytes: int) -> list[str]:
    """The command that runs `command`, a program by its path, with nothing but `files` and libraries to read.

    `memory_bytes` bound what it may write to, where there is no GPU: drivers reserve more than they use.
    """
    if sys.platform != "linux":
        return command
    own = Path(command[0]).parent  # its libraries lie beside it in lib
    folders: list[Path | str] = [
        own,
        own.parent / "lib",
        *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")),
    ]
    limits = {
        "reads": [os.path.abspath(path) for path in (*folders, *files)],
        "memory": None if any(Path("/dev", gpu).exists() for gpu in _GPUS) else memory_bytes,
    }
    return [sys.executable, "-I", "-S", __file__, json.dumps(limits), *command]


def landlock_version() -> int:
    """The version of the kernel's interface; below 1 where it has none, or it is switched off."""
    version: int = ctypes.CDLL(None).syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    return version


def _limit_memory(count: int) -> None:
    import resource

    with suppress(OSError, ValueError):  # a lower limit is set from outside
        resource.setrlimit(resource.RLIMIT_DATA, (count, count))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump holds what was said


def _restrict(reads: list[str]) -> None:
    """Let this process and what it becomes reach `reads` and the system's own files only."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = landlock_version()
    if version < 1:
        return
    rights = (1 << _LAST_RIGHT.get(version, 15) + 1) - 1
    handled = struct.pack("QQ", rights, _BIND | _CONNECT if version >= 4 else 0)[: 16 if version >= 4 else 8]
    rules = call(_CREATE, handled, ctypes.c_size_t(len(handled)), 0)

    def allow(path: str, wanted: int) -> None:
        with suppress(OSError):  # not on this machine
            there = os.open(path, _O_PATH | os.O_CLOEXEC)
            able = rights if os.path.isdir(path) else rights & _OF_FILES
            call(_ADD, rules, _PATH, struct.pack("=Qi", wanted & able, there), 0)
            os.close(there)

    for path in (*_SYSTEM, *reads):
        allow(path, _READ | _LIST | _EXECUTE)
    for name in (*_DEVICES, *(entry.name for entry in os.scandir("/dev") if entry.name.startswith("nvidia"))):
        allow(f"/dev/{name}", _READ | _LIST | _WRITE | _DEVICE)
    for name in _CACHES:
        allow(os.path.join(os.environ.get("HOME", "/nonexistent"), name), rights & ~_DEVICE)
    if version >= 4:  # 0 is any port that the kernel picks; there is no rule for connections
        call(_ADD, rules, _PORT, struct.pack("QQ", _BIND, 0), 0)
    if call(_RESTRICT, rules, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")


def _main(limits: str, command: list[str]) -> None:
    given = json.loads(limits)
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    if given["memory"] is not None:
        _limit_memory(given["memory"])
    _restrict([*given["reads"], command[0]])
    os.execv(command[0], command)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
