"""One app per engine for all tests that need one, and people who talk with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

    from tests.e2e.chats_page import Site
    from tests.e2e.person import Person
    from tests.e2e.serve import App


@pytest.fixture(scope="session", params=["llama-server", "in-process"])
def app(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedded_model: Path
) -> Iterator[App]:
    """Serve the real app with the real small model. pytest runs all tests of one engine together."""
    from chat.llama_server import find_binary
    from tests.e2e.serve import App, models

    if request.param == "llama-server" and find_binary() is None:
        pytest.skip("this installation of llama-cpp-python has no llama-server; run: make test")
    app = App(tmp_path_factory.mktemp("app"), request.param, models(embedded_model))
    yield app
    app.stop()


@pytest.fixture
def person(browser: Browser, app: App) -> Iterator[Person]:
    """Open the page in a fresh profile, and check at the end that the browser did not complain."""
    from tests.e2e.person import Person

    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    person = Person(context.new_page(), app.url)
    yield person
    trouble = person.trouble
    context.close()
    assert not trouble, trouble


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh profile, whose pages can make rows of chats."""
    from tests.e2e.chats_page import ROWS

    context = browser.new_context()
    context.add_init_script(ROWS)
    yield context
    context.close()


@pytest.fixture
def site() -> Iterator[Site]:
    """Serve a plain page with the scripts that keep and list chats."""
    from tests.e2e.chats_page import Site

    site = Site()
    yield site
    site.shutdown()
    site.server_close()
