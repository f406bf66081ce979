"""Child processes that cannot outlive the app. With conversion's tools, all that uses `subprocess`.

`guarded` puts a small Python process between the app and the child: it waits for its standard input to
close, which the kernel does when the app ends for any reason, and then kills the child. Linux has
PR_SET_PDEATHSIG for this, but that follows the *thread* that spawned, and other systems have nothing like it.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Process = subprocess.Popen[bytes]

# What a Python program of ours needs that runs what others wrote (templates, a model's code).
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

# An engine gets the whole environment but for this. A list of what it may have would always lack something:
# each maker of GPUs has prefixes of its own (HSA_, ZE_, ONEAPI_), and so have loaders, drivers and OpenMP. It
# keeps secrets out of logs and crash reports; a child of the same user could find them elsewhere.
_SECRETS = re.compile(
    r"TOKEN|SECRET|(?<!BY)PASS(?!E)|PWD$|CRED|COOKIE|SESSION|AUTH|JWT|BEARER|PRIVATE|SIGNING|NETRC|WEBHOOK"
    r"|(?<!DEBUG)KEYS?(_|\d*$)|(^|_)(PAT|DSN|SALT|PEM|OTP|SAS)(_|$)|CONNECTION_?STR|DATABASE_URL|SERVICE_?ACCOUNT"
)
_OF_OTHERS = re.compile(  # accounts, proxies, and settings that we haven't chosen
    r"(AWS|AZURE|GOOGLE|GCP|GCLOUD|CLOUDSDK|ALIBABA|OCI|HF|HUGGING_?FACE|OPENAI|ANTHROPIC|WANDB|GITHUB|GH"
    r"|GITLAB|CI|NPM|PIP|UV|DOCKER|KUBERNETES|VAULT|SSH|GPG|SPACE|OAUTH|OPENID|GRADIO|TUNE2CHAT|LLAMA|AIP"
    r")_.*|HUGGING_.*|PYTHON.*|KUBE.*|.*_PROXY"
)
_SECRET_VALUE = re.compile(
    r"://[^/\s@]+@"  # who logs in, in an address
    r"|(?i:[?&;\s](access_?token|token|api_?key|account_?key|key|sig|secret|password|pwd)=)"
    # Tokens as the hubs and the makers of models write them, JSON web tokens, and private keys.
    r"|(?:^|[\s=:,'\"])(?:hf_|gh[a-z]_|github_pat_|glpat-|r8_|gsk_|npm_|pypi-|nvapi-|xox[a-z]-|[sr]k_live_|[sr]k_test_"
    r"|sk-|AKIA|AIza|eyJ)[\w-]{6}"
    r"|(?i:^(bearer|basic) )|-----BEGIN"
)


def environment() -> dict[str, str]:
    """The part of the app's environment that a worker gets."""
    return {k: v for k, v in os.environ.items() if k in _KEPT}


def engine_environment() -> dict[str, str]:
    """The app's environment for an engine or a converter: without secrets, proxies and others' settings."""
    return {
        k: v
        for k, v in os.environ.items()
        if k in _KEPT
        or not (_SECRETS.search(k.upper()) or _OF_OTHERS.fullmatch(k.upper()) or _SECRET_VALUE.search(v))
    }


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


@contextmanager
def killed_after(process: Process, seconds: float) -> Iterator[threading.Event]:
    """Kill `process` if the block takes longer; the event says whether that was so."""
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    clock = threading.Timer(seconds, give_up)
    clock.start()
    try:
        yield late
    finally:
        clock.cancel()
        clock.join()


def guarded(command: list[str], secrets: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start `command` behind a guard; its output (stdout and stderr together) is the guard's stdout.

    `secrets` go into its environment; closing the returned process's stdin kills the command.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=engine_environment() | secrets,
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
