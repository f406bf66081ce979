"""What a program with llama-server's rights can't do, tried with other programs."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core.sandbox import confined, landlock_version

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these limits")
with_landlock = pytest.mark.skipif(
    sys.platform != "linux" or landlock_version() < 1, reason="this kernel has no Landlock"
)


def says(*command: str, files: tuple[Path, ...] = (), memory: int = 1 << 32) -> tuple[str, str]:
    """What a command says with the engine's rights, and its errors."""
    done = subprocess.run(confined(list(command), files, memory), capture_output=True, text=True, timeout=30)
    return done.stdout, done.stderr


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("not for the engine")
    return path


@with_landlock
def test_it_reads_its_model_and_nothing_else_of_ours(tmp_path: Path, secret: Path) -> None:
    model = tmp_path / "model"
    model.write_text("for the engine")
    link = tmp_path / "link"
    link.symlink_to(model)
    assert says("/bin/cat", str(model), files=(model,))[0] == "for the engine"
    assert says("/bin/cat", str(link), files=(link,))[0] == "for the engine"
    for path in (secret, Path("/etc/passwd"), Path("/proc/1/status"), Path(__file__)):
        said, error = says("/bin/cat", str(path), files=(model,))
        assert not said
        assert "Permission denied" in error
    assert "Permission denied" in says("/bin/ls", str(tmp_path), files=(model,))[1]


@with_landlock
def test_it_writes_nowhere_and_starts_no_program_of_ours(tmp_path: Path, secret: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho started")
    script.chmod(0o755)
    shell = f"echo x > {tmp_path}/new; echo x > {secret}; rm {secret}; mkdir {tmp_path}/more; {script}"
    said, error = says("/bin/sh", "-c", shell)
    assert not said
    assert error.count("ermission denied") == 5, error
    assert secret.read_text() == "not for the engine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script", "secret"]


@pytest.mark.skipif(landlock_version() < 4, reason="this kernel's Landlock has no rules for TCP")
def test_it_speaks_to_nobody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        shell = f"exec 3<>/dev/tcp/127.0.0.1/{there.getsockname()[1]}"
        assert "Permission denied" in says("/bin/bash", "-c", shell)[1]


def test_memory_that_it_writes_to_is_bounded_and_what_it_maps_is_not(tmp_path: Path) -> None:
    assert says("/bin/sh", "-c", "ulimit -d; ulimit -c", memory=1 << 28)[0].split() == [str(1 << 18), "0"]
    assert "NoNewPrivs:\t1" in says("/bin/cat", "/proc/self/status")[0]
