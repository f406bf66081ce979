"""What a Hugging Face Space's builder runs: its one pip command finds versions for everything."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.app_parts import BINDING, llama_version
from tests.integration.small_packages import write_wheel

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements.txt"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def needs_an_index(requirement: str) -> None:
    """Skip the test where pip, as it is set up here, finds no package index."""
    ask = ["install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed", "--retries", "0"]
    asked = subprocess.run([*PIP, *ask, requirement], capture_output=True, text=True)
    if asked.returncode:
        pytest.skip(f"no package index that has {requirement}; set PIP_INDEX_URL to one")


def maintainers_index(folder: Path) -> str:
    """A folder that plays the index of prebuilt wheels: the real one can't be reached from everywhere."""
    requires = [line for line in importlib.metadata.requires(BINDING) or [] if "extra ==" not in line]
    wheel = write_wheel(folder / BINDING, f"{BINDING}=={llama_version(REQUIREMENTS)}", requires=requires)
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    return folder.as_uri()


@pytest.mark.timeout(600)  # pip asks an index some hundred times
def test_the_builders_command_resolves(tmp_path: Path) -> None:
    version = re.search(r"^sdk_version: (\S+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert version
    needs_an_index(f"gradio=={version[1]}")
    requirements = tmp_path / "requirements.txt"
    text, count = re.subn(
        r"^(--extra-index-url) https://abetlen\S+$",
        rf"\1 {maintainers_index(tmp_path / 'index')}",
        REQUIREMENTS.read_text(),
        flags=re.MULTILINE,
    )
    assert count == 1
    requirements.write_text(text)
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    python = fresh / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    asked = ["-r", requirements, f"gradio[oauth,mcp]=={version[1]}"]
    asked += ["uvicorn>=0.14.0", "websockets>=10.4", "spaces"]
    report = tmp_path / "report.json"
    options = ["--dry-run", "--quiet", "--report", report]
    ran = subprocess.run(
        [*PIP, "--python", python, "install", *options, *asked], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    chosen = {
        each["metadata"]["name"].lower().replace("_", "-"): each
        for each in json.loads(report.read_text())["install"]
    }
    assert chosen["gradio"]["metadata"]["version"] == version[1]
    assert chosen[BINDING]["download_info"]["url"].endswith(".whl")  # prebuilt, not compiled
    assert not {"torch", "transformers"} & set(chosen)
