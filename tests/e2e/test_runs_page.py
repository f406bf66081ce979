"""The page /runs in a real browser: what it loads, what it shows, and that nothing on it does anything."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from playwright.sync_api import Page, Request, expect

from tests.e2e.person import WAIT_MS
from tests.e2e.serve import App
from tests.run_folders import MANIFEST, METRICS, register, write_model, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EVIL = "<img src=http://127.0.0.1:9/x onerror=alert(1)>${alert(2)}{{x}}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, short_model: Path) -> Path:
    root = tmp_path_factory.mktemp("runs")
    (root / "models").mkdir()
    shutil.copy(short_model, root / "models" / "quotes-Q6_K.gguf")
    write_model(root / "models", "quotes-Q6_K", "warn")
    write_model(root / "models", "bad-Q4_0", "fail")
    register(root, "quotes-Q6_K.gguf", "quotes Q6_K")
    return root


@pytest.fixture(scope="module")
def runs_app(root: Path) -> Iterator[App]:
    entry = {"sources": [{"path": "models/quotes-Q6_K.gguf"}], "n_ctx": 512}
    app = App(root, "in-process", {"Small": entry})
    yield app
    app.stop()


@pytest.fixture
def runs_page(browser: Browser, runs_app: App) -> Iterator[Page]:
    """A tab whose dialogs, errors and requests to elsewhere fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    trouble: list[str] = []

    def asked(request: Request) -> None:
        if not request.url.startswith((runs_app.url, "data:", "blob:")):
            trouble.append(request.url)

    page.on("request", asked)
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    yield page
    context.close()
    assert not trouble, trouble


def opened(page: Page, app: App, query: str = "") -> None:
    page.goto(f"{app.url}/runs{query}")
    expect(page.get_by_role("heading", name="Files in models/")).to_be_visible(timeout=WAIT_MS)


def test_commands_then_runs_and_files_and_the_links_between_them(runs_page: Page, runs_app: App) -> None:
    page, outputs = runs_page, runs_app.folder / "outputs"
    bodies: list[str] = []
    page.on("request", lambda request: bodies.append(request.url))
    opened(page, runs_app)
    expect(page.get_by_text("make train")).to_be_visible()
    assert not [url for url in bodies if "Chatbot" in url]
    write_run(outputs)
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_role("heading", name="quotes", exact=True)).to_be_visible()
    expect(page.get_by_role("img", name="Loss over the steps")).to_be_visible()
    expect(page.get_by_text("A rose is a rose.")).to_be_visible()
    expect(page.get_by_text("unverified: it failed a check")).to_be_visible()
    page.get_by_role("link", name="quotes", exact=True).first.click()
    expect(page.get_by_role("link", name="Show all runs")).to_be_visible()
    assert page.url == f"{runs_app.url}/runs?run=quotes"
    page.get_by_role("link", name="quotes-Q6_K.gguf").click()
    expect(page.locator("section.card").filter(has_text="quantised: KL").first).to_be_in_viewport()
    page.locator("section.card").get_by_role("link", name="Chat with it: quotes Q6_K").click()
    page.wait_for_url(f"{runs_app.url}/?model=quotes%20Q6_K")
    expect(page.locator("#chat")).to_be_visible()
    opened(page, runs_app)
    page.get_by_role("link", name="Back to the chat").click()
    expect(page.locator("#chat")).to_be_visible()


def test_a_run_that_goes_on_is_followed(runs_page: Page, runs_app: App) -> None:
    folder = write_run(runs_app.folder / "outputs", "long", manifest=None)
    with FileLock(folder / ".lock"):
        opened(runs_page, runs_app)
        now = runs_page.locator("#now")
        expect(now).to_contain_text("running, at step 20 of 20")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(METRICS[-2] | {"step": 40}) + "\n")
        expect(now).to_contain_text("running, at step 40", timeout=30_000)
        (folder / "manifest.json").write_text(json.dumps(MANIFEST | {"steps": 40}))
    expect(runs_page.locator("#rest")).to_contain_text("finished at step 40", timeout=30_000)
    expect(now).not_to_contain_text("running")


def test_hostile_names_and_texts_do_nothing(runs_page: Page, runs_app: App) -> None:
    name = EVIL.replace("/", "")
    folder = write_run(runs_app.folder / "outputs", name, MANIFEST | {"device": EVIL, "stopped": EVIL})
    (folder / "samples.md").write_text(
        f"# Samples\n\n| prompt | before | after |\n| - |\n| {EVIL} | {EVIL} | a |\n"
    )
    opened(runs_page, runs_app, f"?{urllib.parse.urlencode({'run': name})}")
    expect(runs_page.locator("#rest h3").first).to_have_text(name)
    expect(runs_page.locator(".sample").first).to_contain_text(EVIL)
    assert runs_page.locator("#rest img").count() == 0
    opened(runs_page, runs_app, f"?{urllib.parse.urlencode({'run': EVIL})}")
    expect(runs_page.locator("#rest")).to_contain_text(f"No run is called {EVIL}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Browser, runs_app: App, scheme: str) -> None:
    size = {"width": 360, "height": 740}
    page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    opened(page, runs_app)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    page.close()
