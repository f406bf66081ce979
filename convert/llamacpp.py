"""llama.cpp's tools and its converter: found, fetched and run. No other file of `convert/` starts programs.

Nothing goes through a shell, a program gets only the environment that it needs, and it ends when we end
(core/child.py), so a run that was killed leaves nobody behind who still writes into its files.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO

from core import child
from core.errors import ConvertError

BINDING = "llama-cpp-python"
# SHA-256 of the source distributions whose converter we run, by version of the binding.
SDIST_SHA256 = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
CONVERTER, LORA_CONVERTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
CONVERTER_PARTS = (CONVERTER, LORA_CONVERTER, "conversion", "gguf-py", "LICENSE")  # in vendor/llama.cpp/
SHOWN_LINES = 20
# What pip needs to reach the index that its user has set up.
_PIP_PREFIXES = ("PIP_", "XDG_", "SSL_CERT", "REQUESTS_CA")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def tool(name: str) -> Path:
    """Find `name` (say `llama-quantize`): in $LLAMA_CPP_DIR, beside the installed binding, on the PATH.

    Raises ConvertError.
    """
    program = name + (".exe" if os.name == "nt" else "")
    folders = [Path(sysconfig.get_path(key)) / "bin" for key in ("purelib", "platlib")]
    if chosen := os.environ.get("LLAMA_CPP_DIR"):
        folders = [Path(chosen), Path(chosen, "bin"), Path(chosen, "build", "bin"), *folders]
    for folder in folders:
        if (folder / program).is_file():
            return folder / program
    if found := shutil.which(program):
        return Path(found)
    raise ConvertError(
        f"llama.cpp's {name} is not installed. Run 'make chat' once, which builds it, "
        "or set LLAMA_CPP_DIR to a folder with llama.cpp's programs"
    )


def converter(name: str = CONVERTER) -> Path:
    """Find llama.cpp's converter of the installed binding's version, fetching it the first time."""
    if chosen := os.environ.get("LLAMA_CPP_DIR"):
        script = Path(chosen, name)
        if script.is_file():
            return script
    installed = version(BINDING)
    folder = _cache() / f"llama.cpp-of-{BINDING}-{installed}"
    if not (folder / name).is_file():
        _fetch(installed, folder)
    return folder / name


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tune2chat"


def _fetch(installed: str, folder: Path) -> None:
    """Bring the converter out of the binding's source distribution, whose hash we know."""
    if installed not in SDIST_SHA256:
        known = " or ".join(SDIST_SHA256)
        raise ConvertError(
            f"no hash is known for the source of {BINDING} {installed}: install {known}, "
            "or set LLAMA_CPP_DIR to a checkout of llama.cpp"
        )
    print(
        f"Fetching llama.cpp's converter from the source of {BINDING} {installed} (77 MB, once).", flush=True
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text(f"{BINDING}=={installed} --hash=sha256:{SDIST_SHA256[installed]}\n")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-binary",
            BINDING,
            "--require-hashes",
        ]
        run([*pip, "-q", "-d", scratch, "-r", wanted], variables=_pip_variables())
        archive = next(Path(scratch).glob("*.tar.gz"))
        extract(archive, Path(scratch, "new"))
        shutil.rmtree(folder, ignore_errors=True)
        Path(scratch, "new").replace(folder)


def _pip_variables() -> dict[str, str]:
    def needed(name: str) -> bool:
        return name.startswith(_PIP_PREFIXES) or name.lower() in _PROXIES

    return {name: value for name, value in os.environ.items() if needed(name)}


def extract(archive: Path, target: Path) -> None:
    """Write the converter's regular files, and nothing that would leave `target`."""
    with tarfile.open(archive) as source:
        for member in source:
            inside = PurePosixPath(member.name).parts[1:]  # the first part is the distribution's own folder
            wanted = inside[:2] == ("vendor", "llama.cpp") and inside[2:3] and inside[2] in CONVERTER_PARTS
            content = source.extractfile(member) if wanted and member.isreg() and ".." not in inside else None
            if content is not None:
                path = target.joinpath(*inside[2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as out:
                    shutil.copyfileobj(content, out)
    if not (target / CONVERTER).is_file():
        raise ConvertError(f"{archive.name} holds no {CONVERTER}")


def run(
    command: Sequence[str | Path],
    on_line: Callable[[str], None] | None = None,
    variables: dict[str, str] | None = None,
) -> str:
    """Run a program to its end and return what it printed, stdout and stderr as they came.

    `on_line` gets each line, first as far as it is written where a program writes one bit by bit; a progress
    bar that redraws itself with carriage returns counts as lines.
    Raises ConvertError with the command, its exit code and its last 20 lines.
    """
    words = [str(word) for word in command]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    process = child.guarded(words, quiet | (variables or {}))
    assert process.stdin is not None  # the pipe that ends the program when it is closed
    assert process.stdout is not None
    printed: list[str] = []
    try:
        for line, whole in _lines(process.stdout):
            if whole:
                printed.append(line)
            if on_line:
                on_line(line)
        code = process.wait()
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()
    if code:
        last = "\n".join(deque((line for line in printed if line.strip()), SHOWN_LINES))
        raise ConvertError(f"this command ended with code {code}:\n  {' '.join(words)}\n{last}")
    return "\n".join(printed)


def _lines(stream: IO[bytes]) -> Iterator[tuple[str, bool]]:
    """Cut at line feeds and carriage returns; yield each line, and whether it is whole."""
    rest = b""
    while block := stream.read1(65536):  # type: ignore[attr-defined]
        *lines, rest = (rest + block).replace(b"\r", b"\n").split(b"\n")
        yield from ((line.decode("utf-8", "replace"), True) for line in lines)
        if rest:
            yield rest.decode("utf-8", "replace"), False
    if rest:
        yield rest.decode("utf-8", "replace"), True
