"""Child processes that cannot outlive the app. The one file of `chat/` that uses `subprocess`.

`guarded` puts a small Python process between the app and the child: it waits for its standard input to
close, which the kernel does when the app ends for any reason, and then kills the child. Linux has
PR_SET_PDEATHSIG for this, but that follows the *thread* that spawned, and other systems have nothing like it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

# What a child may need of the app's environment: no tokens, and no settings that we haven't chosen.
_KEPT = frozenset(
    (
        "PATH",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "PYTHONPATH",
        "SYSTEMROOT",
        "TEMP",
        "TMP",
        "TMPDIR",
        "HOME",
    )
)
_KEPT_PREFIXES = ("CUDA_", "GGML_", "HIP_", "ROCR_", "VK_")  # which GPU, and how


def environment() -> dict[str, str]:
    """The part of the app's environment that a child process gets."""
    return {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}


def worker(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start our own Python on `arguments`, talking over pipes. It must end when its stdin does."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[1],
        env=environment(),
        start_new_session=True,  # Ctrl-C in the terminal is for the app, which then closes the pipe
    )


def guarded(command: list[str], secrets: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start `command` behind a guard; its output (stdout and stderr together) is the guard's stdout.

    `secrets` go into its environment; closing the returned process's stdin kills the command.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment() | secrets,
        start_new_session=True,
    )


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of sys/prctl.h


def _guard(command: list[str]) -> None:
    # Should the guard itself be killed, Linux ends the child: the thread that starts it lives as long.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)

    def kill_when_app_ends() -> None:
        os.read(0, 1)  # nothing is ever written: this returns at end of file
        child.kill()

    threading.Thread(target=kill_when_app_ends, daemon=True).start()
    code = child.wait()
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    _guard(sys.argv[1:])
