"""What is on the disk: all that was kept, whenever the browser is killed, and no word once all is deleted."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Error

from tests.conftest import SYSTEM_BROWSERS
from tests.e2e.chats_page import ROWS, Site, do, tab

KILLS = 30 if os.environ.get("TUNE2CHAT_TEST_ALL") else 8


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


def test_everything_deleted_leaves_no_word_on_the_disk(browser: Browser, site: Site, tmp_path: Path) -> None:
    context = launch(browser, tmp_path)
    page, other = tab(context, site), tab(context, site)
    page.evaluate(
        "localStorage['tune2chat-theme'] = 'dark'; localStorage['tune2chat-chat:1'] = 'old'; void 0"
    )
    do(page, "await store.put(rows('a', 0, 'unmistakable'));")
    do(
        other,
        "await store.put(rows('b', 0, 'unmistakable')); await store.remove('b'); await store.forget(['b']);",
    )
    assert holds(tmp_path, "unmistakable")
    assert do(page, "await store.clear(); return store.list()") == []
    assert not holds(tmp_path, "unmistakable")
    assert page.evaluate("({ ...localStorage })") == {"tune2chat-theme": "dark"}
    for each in (page, other):
        do(each, "await store.put(rows('c'));")
        assert len(do(each, "return store.list()")) == 1
        assert each.evaluate("tune2chat.store.fault") == ""
    context.close()


def holds(folder: Path, word: str) -> bool:
    """Whether a file has this word, in one byte or two a letter."""
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return any(word.encode(kind) in data for data in files for kind in ("ascii", "utf-16-le"))
