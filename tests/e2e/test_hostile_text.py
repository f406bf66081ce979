"""Text that attacks the page: whatever is in a chat, nothing runs, nothing is covered, no request leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App
from tests.e2e.store import put_chat

pytestmark = pytest.mark.parametrize("app", ["llama-server"], indirect=True)

# `URL` is the address of a server that must not be asked.
TEXTS = {
    "image": '![a](URL) ![a](URL "title") ![b](<URL>) [![a](URL)](https://example.org) ![a\nb](URL)',
    "image by reference": "![a][r] ![r] ![r][]\n\n[r]: URL",
    "image after a backslash": "\\![a](URL) !\\[a](URL) \\\\![a](URL)",
    "image in blocks": "| a | b |\n|---|---|\n| ![a](URL) | <img src=URL> |\n\n- ![a](URL)\n  > "
    "![a](URL)\n\n# ![a](URL)",
    "image beside code": "`x`![a](URL) ``y`` !`z`[a](URL)\n\n    ![a](URL)\n\n- x\n\n      "
    "![a](URL)\n\n\t![a](URL)",
    "image after a fence": "> ```\n> a\n\n![a](URL)\n\n- ```\n  a\n\n![a](URL)\n\n```\n![a](URL)",
    "html": "<img src=URL><IMG SRC='URL' onerror=window.ran=1><video src=URL><audio src=URL><embed src=URL>"
    "<object data=URL><iframe src=URL><svg><image href=URL /><script>window.ran=1</script></svg>",
    "style": "<style>@import 'URL';</style><link rel=stylesheet href=URL><p style='background:url(URL)'>",
    "cover and form": "<div style='position:fixed;inset:0'>x</div><form action=URL><button>Log "
    "in</button></form>",
    "script": "<script>window.ran=1</script><a href='javascript:window.ran=1'>a</a> "
    "[b](javascript:window.ran=1)",
    "meta": "<meta http-equiv=refresh content='0;url=URL'><base href=URL>",
    "formula": "$$\\includegraphics{URL}$$ \\(\\href{javascript:window.ran=1}{a}\\) "
    "$$\\htmlStyle{position:fixed}{a}$$",
    "formula bomb": "$$\\def\\a#1{#1#1#1#1}" + "\\a{" * 12 + "x" + "}" * 12 + "$$",
    "formula that grows": "$$\\rule{99999em}{99999em}$$ \\[" + "{" * 3000 + "x" + "}" * 3000 + "\\]",
    "diagram": '```mermaid\ngraph TD\nA["<img src=URL>"] --> B\nclick A "javascript:window.ran=1"\n```',
    "diagram elsewhere": '> ```Mermaid\n> graph TD\n> A["<img src=URL>"]\n\n- ~~~ mermaid\n  graph TD\n  '
    'A["<img src=URL>"]',
    "diagram with an entity": '```mer&#109;aid\ngraph TD\nA["<img src=URL>"]\n```',
    "other languages": '```svg\n<svg><image href="URL"/></svg>\n```\n\n```"><img src=URL '
    "onerror=window.ran=1>\nx\n```",
    "a fence that is none": "```a`b\n<img src=URL>\n```\n\n$$\n```\n$$\n<img src=URL>\n```\n\n"
    "\\[\n```\n\\]\n<img src=URL>\n```",
    "a span that is none": "\\`<img src=URL>` $$`$$ <img src=URL> ` [a](`) <img src=URL> `",
    "a span over blocks": "`a\n\n<img src=URL>\n\n- b`\n\n<https://x/`> <img src=URL> `\n\nwww.x.org/`a "
    "<img src=URL> `",
    "a span over cells": "| a | b |\n|---|---|\n| `a | <img src=URL> ` |",
    "a title over lines": '[a]: x "t\n```\nt"\n\n<img src=URL>\n\n```',
    "direction": "\u202egnp.x\u202c \u2066a\u2069 \u200b\u200d\ufeff\u2060 <\u2060img src=URL> "
    "!\u2060[a](URL)",
    "one letter": "a" * 100_000,
}
LOADS = (
    "img, image, video, audio, embed, object, iframe, form, style, link, script, meta, base, foreignObject"
)


@pytest.fixture
def away() -> Iterator[tuple[str, list[str]]]:
    """A server of another origin: its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x.png", asked
    server.shutdown()
    server.server_close()


def test_nothing_runs_is_covered_or_leaves_the_page(
    browser: Browser, app: App, away: tuple[str, list[str]]
) -> None:
    url, asked = away
    person = Person(browser.new_page(viewport={"width": 1280, "height": 800}), app.url)
    messages = [
        {"role": role, "content": f"{text.replace('URL', url)}\n\n# End of {name}"}
        for name, text in TEXTS.items()
        for role in ("user", "assistant")
    ]
    put_chat(person, messages)
    person.page.get_by_role("button", name="Show earlier messages").click()
    expect(person.replies).to_have_count(len(TEXTS), timeout=WAIT_MS)
    expect(person.replies.last).to_contain_text("End of one letter", timeout=WAIT_MS)
    person.page.wait_for_timeout(1000)
    for shown in (person.questions, person.replies):
        for number, name in enumerate(TEXTS):
            found = shown.nth(number).locator(LOADS)
            assert found.count() == 0, f"{name}: {shown.nth(number).inner_html()[:2000]}"
    assert person.page.evaluate("window.ran") is None
    assert asked == []
    load = (
        "(url) => new Promise((done) => { const i = new Image(); i.onerror = i.onload = done; i.src = url; })"
    )
    person.page.evaluate(load, url)  # what got past all that would be stopped by the page's policy
    assert asked == []
    cover = "<p style='position:fixed;inset:0' class='cover'>x</p>"
    person.replies.last.evaluate("(e, html) => e.insertAdjacentHTML('beforeend', html)", cover)
    inside, bubble = person.page.locator(".cover").bounding_box(), person.replies.last.bounding_box()
    assert inside
    assert bubble
    assert inside["width"] <= bubble["width"]
    person.page.close()
