"""A plain page with the scripts that keep and list chats, and what the app answers someone who signed in."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from playwright.sync_api import BrowserContext, Page

CHAT = Path(__file__).resolve().parents[2] / "chat"
SCRIPTS = ("kept_in_browser.js", "kept.js", "chat_rows.js", "chat_list.js")
# A turn a row: the chat's row and its two messages, as chat/tree.py writes them.
ROWS = """window.rows = (id, turn = 0, text = 'word', changed = 1e9) => {
  const node = (name, parent, role, content) =>
    ({ id: name, parent, at: turn, message: { role, content }, vote: 0, edited: false });
  const before = turn ? `a${turn - 1}` : '';
  return {
    chat: { id, title: `Chat ${id}`, made: 1, changed, pinned: false, leaf: `a${turn}` },
    messages: [node(`q${turn}`, before, 'user', text), node(`a${turn}`, `q${turn}`, 'assistant', text)],
  };
};"""
# Gradio's own values of the colours that the style sheet uses, light and dark.
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Chats</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  body {{ margin: 0; background: var(--background-fill-primary); font-family: system-ui, sans-serif;
    --background-fill-primary: white; --background-fill-secondary: #fafafa; --body-text-color: #27272a;
    --body-text-color-subdued: #71717a; --border-color-primary: #e4e4e7; --color-accent: #6366f1; }}
  body.dark {{ --background-fill-primary: #0f0f11; --background-fill-secondary: #18181b;
    --body-text-color: #f4f4f5; --body-text-color-subdued: #bbbbc2; --border-color-primary: #3f3f46; }}
  main {{ width: 320px; max-width: 100%; height: 100vh; padding: 8px; box-sizing: border-box; }}
</style><style>{css}</style></head>
<body><main><h1 hidden>Chats</h1><div id="root"></div></main>{scripts}
<script>
  window.heard = []; window.done = [];
  const note = (name) => (id) => done.push(id === undefined ? name : name + ' ' + id);
  window.show = () => window.list = tune2chat.list(document.querySelector('#root'),
    {{ open: note('open'), fresh: note('fresh'), removed: note('removed') }});
  tune2chat.store.onchange = (ids) => heard.push(...ids);
</script></body></html>"""


def page_of(change: tuple[str, str] = ("", "")) -> str:
    """The page; with `change` made to its scripts, as a later version of them would be."""
    scripts = "".join(f"<script>{(CHAT / name).read_text()}</script>" for name in SCRIPTS).replace(*change)
    return PAGE.format(css=(CHAT / "chat_list.css").read_text(), scripts=scripts)


class Site(ThreadingHTTPServer):
    """Serves the page on loopback. With a `user` it keeps chats in memory as the app does in its database."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.user = ""
        self.trees: dict[str, dict[str, Any]] = {}
        self.removed: dict[str, dict[str, Any]] = {}
        self.refused = ""  # a chat that the app doesn't take
        self.told: list[str] = []
        self.page = page_of()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Say nothing: browsers that are killed break their connections."""

    def rows(self, text: str) -> list[dict[str, Any]]:
        """What the list shows of each chat, `found` included where `text` is looked for."""
        rows = []
        for tree in self.trees.values():
            row = {key: tree["chat"][key] for key in ("id", "title", "made", "changed", "pinned")}
            row["messages"] = len(tree["messages"])
            found = [m["message"]["content"] for m in tree["messages"] if text in m["message"]["content"]]
            if text:
                row["found"] = found[0] if found else ""
            if not text or found or text in row["title"]:
                rows.append(row)
        return sorted(rows, key=lambda row: (not row["pinned"], -row["changed"]))

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Do what the app's own routes do."""
        url = urlsplit(path)
        name = unquote(url.path.removeprefix("/chats").strip("/"))
        if method == "GET" and not name:
            text = parse_qs(url.query).get("search", [""])[0]
            rows = self.rows(text) if self.user else []
            return 200, {
                "user": self.user,
                "chats": rows,
                "bytes": len(json.dumps(list(self.trees.values()))),
            }
        if not self.user and (method, name) == ("DELETE", ""):
            return 200, {}  # and the header below
        if not self.user:
            return 401, {"detail": "Sign in."}
        if method == "POST" and not name:
            return self.take_in(body["chats"])
        return self.change(method, name, body)

    def take_in(self, trees: list[dict[str, Any]]) -> tuple[int, Any]:
        if any(tree["chat"]["id"] == self.refused for tree in trees):
            return 413, {"detail": "This chat is too large."}
        self.trees |= {tree["chat"]["id"]: tree for tree in trees}
        return 200, {"taken": len(trees)}

    def change(self, method: str, name: str, body: Any) -> tuple[int, Any]:
        match method, name.removesuffix("/restore"):
            case "DELETE", "":
                self.trees.clear()
            case "DELETE", chat:
                self.removed[chat] = self.trees.pop(chat)
            case "POST", chat:
                self.trees[chat] = self.removed.pop(chat)
            case "PATCH", chat:
                self.trees[chat]["chat"] |= body
            case _:
                return 404, {"detail": "There is no such chat."}
        return 200, {}


class Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def do(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if re.match(r"/chats\b", self.path):
            status, answer = self.server.answer(self.command, self.path, json.loads(raw or b"null"))
            return self.reply(status, "application/json", json.dumps(answer))
        if self.command == "POST":  # what a test's own script has to tell, before it may be killed
            self.server.told.append(raw.decode())
        self.reply(200, "text/html", "" if self.path != "/" else self.server.page)

    do_GET = do_POST = do_PATCH = do_DELETE = do

    def reply(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.command == "DELETE" and self.path == "/chats" and not self.server.user:
            self.send_header("Clear-Site-Data", '"storage"')
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def tab(context: BrowserContext, site: Site) -> Page:
    page = context.new_page()
    page.goto(site.url)
    return page


def do(page: Page, script: str, *given: Any) -> Any:
    """Run `script` on the page with `store`; a rejection comes back as its sentence."""
    code = f"(given) => (async (store) => {{ {script} }})(tune2chat.store).catch((error) => error.message)"
    return page.evaluate(code, list(given))
