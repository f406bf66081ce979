"""The browser is killed while chats are being kept: every message that was said to be kept is there again."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Error

from tests.conftest import SYSTEM_BROWSERS
from tests.e2e.chats_page import ROWS, Site, do, tab

KILLS = 30 if os.environ.get("TUNE2CHAT_TEST_ALL") else 8


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.shutdown()
    site.server_close()


def test_a_kill_at_any_moment_loses_no_row_that_was_kept(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    """Every other time the process that draws the page, every other time the whole browser."""
    put = """async (run) => {
      const store = tune2chat.store;
      for (let turn = 0; ; turn++) {
        await store.put(rows(`run${run}`, turn, `${turn} `.repeat(1 + (turn * 97) % 2000)));
        fetch('/kept', { method: 'POST', body: `${run} ${turn}`, keepalive: true });
      }
    }"""
    draw, context, profile = random.Random(7), None, tmp_path / "profile"
    for run in range(KILLS):
        context = context or launch(browser, profile)
        page = tab(context, site)
        page.evaluate(f"void ({put})({run})")
        deadline = time.monotonic() + 0.1 + draw.random()
        while time.monotonic() < deadline or not any(line.startswith(f"{run} ") for line in site.told):
            time.sleep(0.01)
        if run % 2:
            with pytest.raises(Error):
                page.goto("chrome://crash")
        else:
            kill(profile)
            context = None
    context = context or launch(browser, profile)
    page = tab(context, site)
    for run in range(KILLS):
        told = [int(line.split()[1]) for line in site.told if line.startswith(f"{run} ")]
        tree = do(page, "return store.read(given[0])", f"run{run}")
        turns = [row["id"] for row in tree["messages"]]
        assert len(turns) >= 2 * (max(told) + 1)
        assert turns == [
            f"{kind}{n}" for n in range(len(turns) // 2) for kind in "qa"
        ]  # and no half of a turn
        assert tree["chat"]["leaf"] == turns[-1]
    context.close()


def launch(browser: Browser, profile: Path) -> BrowserContext:
    kind = browser.browser_type
    found = next(filter(None, map(shutil.which, SYSTEM_BROWSERS)), None)
    context = kind.launch_persistent_context(profile, executable_path=found)
    context.add_init_script(ROWS)
    return context


def kill(profile: Path) -> None:
    """Kill the browser of this profile, which this process has started."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []  # a process that has just ended has none
        if f"--user-data-dir={profile}" in command and not any(
            part.startswith("--type=") for part in command
        ):
            process.kill()
            process.wait(30)
