"""Runs one Python program that a model wrote: `python -m train.tasks.code_worker FOLDER < program`.

It prints `passed` if the program ran to its end in time. Limits: 10 seconds; on Linux also 1 GiB of memory,
no bytes written to files and (unless root) no other processes or threads. FOLDER is where the program runs,
an empty one. No security sandbox: the program can read files, delete them, and reach the network.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

TIME_LIMIT_S = 10.0
MEMORY_BYTES = 2**30
PASSED = b"passed"


def main() -> None:
    """Run standard input to its end; whatever goes wrong there ends this process without a word."""
    program = sys.stdin.buffer.read().decode()
    answer = os.dup(1)
    with open(os.devnull, "r+b", buffering=0) as nowhere:
        for stream in (0, 1, 2):
            os.dup2(nowhere.fileno(), stream)
    sys.path.pop(0)  # this repository
    os.chdir(sys.argv[1])
    _limit_this_process()
    # Not "__main__": a program's own main part must not run, or it could end the process before the test.
    exec(compile(program, "candidate", "exec"), {"__name__": "candidate"})
    os.write(answer, PASSED)
    os._exit(0)  # a thread that was left behind is not waited for


def _limit_this_process() -> None:
    if hasattr(signal, "setitimer"):  # its default action ends the process wherever it is, in C code too
        signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for limit, value in limits.items():
        with suppress(OSError, ValueError):  # macOS has no limit on memory; elsewhere a lower one is set
            resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
