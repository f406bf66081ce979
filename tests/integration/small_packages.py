"""Packages for the real pip that take no minutes: a wheel, and an sdist that keeps its build settings."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

# The build of the sdist: llama.cpp's tools are there if they were asked for, as llama-cpp-python does it.
BACKEND = """
import json, zipfile
STEM, TOOLS = {stem!r}, {tools!r}
def build_wheel(folder, config_settings=None, metadata_directory=None):
    settings = config_settings or {{}}
    name = STEM + "-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        write(wheel)
        wheel.writestr("llama_cpp/settings.json", json.dumps(settings))
        if settings.get("cmake.define.LLAMA_TOOLS_INSTALL") == "ON":
            for tool in TOOLS:
                wheel.writestr("bin/" + tool, "")
    return name
def write(wheel):
    info = STEM + ".dist-info/"
    wheel.writestr(info + "METADATA", {metadata!r})
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\nTag: py3-none-any\\n")
    wheel.writestr(info + "RECORD", "")
"""


def stem_of(requirement: str) -> str:
    """`name-version` as files are called, of `name==version`."""
    name, version = requirement.split("==")
    return f"{name.replace('-', '_')}-{version}"


def metadata_of(requirement: str, requires: Sequence[str] = ()) -> str:
    """The METADATA of a package that needs `requires`."""
    name, version = requirement.split("==")
    needed = "".join(f"Requires-Dist: {line}\n" for line in requires)
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}"


def write_wheel(
    folder: Path, requirement: str, files: Sequence[str] = (), requires: Sequence[str] = ()
) -> Path:
    """Write a small wheel that satisfies `name==version`."""
    stem = stem_of(requirement)
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{stem}-py3-none-any.whl"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata_of(requirement, requires))
        wheel.writestr(f"{stem}.dist-info/WHEEL", tags)
        for file in files:
            wheel.writestr(file, "")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def write_sdist(folder: Path, requirement: str, tools: Sequence[str]) -> Path:
    """Write an sdist that needs nothing to be built and puts the settings of the build into the package."""
    stem = stem_of(requirement)
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{stem}.tar.gz"
    metadata = metadata_of(requirement)
    texts = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.format(stem=stem, tools=list(tools), metadata=metadata),
        "PKG-INFO": metadata,
    }
    with tarfile.open(path, "w:gz") as sdist:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"{stem}/{name}")
            member.size = len(text.encode())
            sdist.addfile(member, io.BytesIO(text.encode()))
    return path
