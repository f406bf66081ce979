"""What the page's scripts ask for, by the bus: to open a chat, to show another branch, to count, to save."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from chat import branching
from chat import page_html as parts
from chat.context import check_size
from chat.events import Handlers
from chat.formats import Imported, read_chats, to_json, to_markdown, to_preferences_jsonl, to_training_jsonl
from chat.gradio_import import gr
from chat.kept import Kept
from chat.page import Tab, Updates
from chat.tabs import LOST
from chat.tree import Chat, Tree
from chat.turns import Busy
from core.errors import ChatError

Data = Mapping[str, Any]

EXPORTS = {
    "Markdown": (to_markdown, "chat.md", "text/markdown"),
    "JSON": (lambda tree: to_json([tree]), "chat.json", "application/json"),
    "Training rows": (lambda tree: to_training_jsonl([tree]), "chat.jsonl", "application/jsonl"),
    "Preference rows": (lambda tree: to_preferences_jsonl([tree]), "preferences.jsonl", "application/jsonl"),
}


class Actions:
    """The handler of the bus: each action by its name."""

    def __init__(self, on: Handlers, kept: Kept | None) -> None:
        self._on, self._page, self._kept = on, on.page, kept

    def act(self, data: gr.EventData, request: gr.Request) -> Updates:
        """Do what the page's script asked for; what it can't be is told in a sentence."""
        asked: Data = data._data if isinstance(data._data, Mapping) else {}
        name, tab = str(asked.get("act")), self._on.tab(request)
        tab.secret = str(asked.get("visitor") or tab.secret)
        try:
            action = _ACTIONS.get(name)
            return (action(self, tab, asked) if action else {}) or self._page.nothing()
        except ChatError as error:
            status = {} if asked.get("quiet") else {self._page.status: parts.error_html(str(error))}
            return status | self._page.tell(failed=name)

    def _open(self, tab: Tab, asked: Data) -> Updates:
        """Show a chat, and the reply that is still being written in it. A visitor's page sends the rows."""
        name, rows = str(asked.get("id") or ""), asked.get("rows")
        answers = self._on.turns.find(tab.owner, name)
        if answers:
            tab.tree = answers.tree
        elif tab.signed_in and self._kept:
            tab.tree = self._kept.read(tab.signed_in, name)
        elif isinstance(rows, Mapping):
            tab.tree = Tree.read(rows.get("chat"), rows.get("messages"))
        else:
            raise ChatError("This chat is not here any more.")
        note = " ".join(filter(None, [self._came(tab, asked), self._opened(tab)]))
        status = parts.error_html(LOST) if asked.get("lost") else parts.note_html(note)
        updates = self._page.idle(tab.tree.chat.model) | self._page.restored(tab)
        updates[self._page.status] = status
        return updates | (self._on.follow(tab, answers) if answers else {})

    def _came(self, tab: Tab, asked: Data) -> str:
        """What came in by the file that was read, if one was; the browser says what it left out itself."""
        left = asked.get("left")
        tab.came.notes.update(map(str, left if isinstance(left, list) else []))
        return tab.came.told() if asked.get("came") else ""

    def _opened(self, tab: Tab) -> str:
        """Make the tab ready for the chat that it shows from now on; say what is different there."""
        host, chat = self._on.sessions.host, tab.tree.chat
        tab.window, tab.undone, tab.following = parts.WINDOW, [], None
        wanted = chat.model or host.default
        if wanted in host.registry.entries:
            chat.model = wanted
            return host.warning(wanted)
        chat.use_model(host.default)
        return f"This chat's model {wanted} is not in the menu; it goes on with {host.default}."

    def _fresh(self, tab: Tab, asked: Data) -> Updates:
        """An empty chat with the model of the one before, or the one that is named."""
        host, page = self._on.sessions.host, self._page
        model = str(asked.get("model") or tab.tree.chat.model)
        model = model if model in host.registry.entries else host.default
        tab.tree = Tree(Chat(model=model))
        self._opened(tab)
        defaults = self._on.defaults(model) if model else {}
        status = {} if asked.get("quiet") else {page.status: ""}
        return page.idle(tab.tree.chat.model) | page.restored(tab) | defaults | status | page.tell(open="")

    def _gone(self, tab: Tab, asked: Data) -> Updates:
        """A chat was deleted: its reply ends, and doesn't bring it back."""
        if answers := self._on.turns.find(tab.owner, str(asked.get("id"))):
            answers.gone = True
            self._on.turns.stop(tab.owner, answers.tree.chat.id)
        return {}

    def _show(self, tab: Tab, asked: Data) -> Updates:
        def change(tree: Tree) -> None:
            branching.switch(tree, tree.newest(str(asked.get("id"))))

        return self._on.changed(tab, change)

    def _branch(self, tab: Tab, asked: Data) -> Updates:
        """A new chat that begins as this one does, as far as the message pointed at."""
        if self._on.busy(tab):
            raise Busy
        tab.tree = branching.branched(tab.tree, str(asked.get("id")))
        self._opened(tab)
        nodes = list(tab.tree.nodes.values())
        note = {self._page.status: parts.note_html("A new chat, which begins with this branch.")}
        return self._page.restored(tab) | note | self._on.keep(tab, nodes)

    def _rate(self, tab: Tab, asked: Data) -> Updates:
        """Keep what somebody thinks of a reply."""
        self._on.lost(tab, "")  # who signed in may have changed the chat elsewhere
        node, vote = tab.tree.node(asked.get("id")), asked.get("vote")
        if node.message.role != "assistant" or vote not in (-1, 0, 1):
            raise ChatError("This is no vote on a reply.")
        node.vote = vote
        return self._page.show(tab, self._on.busy(tab)) | self._on.keep(tab, [node])

    def _vote(self, tab: Tab, asked: Data) -> Updates:
        """Keep which of two replies is better; the chat goes on with that one."""
        if not (pair := tab.tree.pair()) or self._on.busy(tab):
            raise ChatError("There are no two replies to choose between.")
        votes: dict[str, tuple[Literal[-1, 1], Literal[-1, 1]]]
        votes = {"left": (1, -1), "right": (-1, 1), "both": (1, 1), "neither": (-1, -1)}
        if (chosen := votes.get(str(asked.get("vote")))) is None:
            raise ChatError("This is no vote.")
        pair[0].vote, pair[1].vote = chosen
        goes_on = "right" if chosen[1] > chosen[0] else "left"
        tab.tree.chat.leaf = tab.tree.newest(pair[goes_on == "right"].id)
        left, right = map(parts.arm_name, pair)
        told = f"Left: {left}. Right: {right}. The chat goes on with the {goes_on} one."
        tab.tree.chat.compared = None
        kept = self._on.keep(tab, pair)
        return self._page.show(tab) | {self._page.status: parts.note_html(told)} | kept

    def _earlier(self, tab: Tab, asked: Data) -> Updates:
        tab.window += parts.WINDOW
        return self._page.show(tab, self._on.busy(tab))

    def _export(self, tab: Tab, asked: Data) -> Updates:
        """The chat as a file, which the browser makes of its text."""
        if (export := EXPORTS.get(str(asked.get("format")))) is None:
            raise ChatError("This is no format.")
        make, name, kind = export
        if not tab.tree.nodes:
            raise ChatError("There is nothing to save yet.")
        self._on.lost(tab, "")  # who signed in may have renamed it, as below a visitor
        chat = tab.tree.chat
        try:
            chat.title, chat.pinned = asked.get("title", chat.title), asked.get("pinned", chat.pinned)
        except ValidationError as error:
            raise ChatError(parts.refusal(error)) from None
        if not (text := make(tab.tree)):
            raise ChatError("No reply of this chat is preferred to another: compare two, or edit one.")
        return self._page.tell(save={"text": text, "name": name, "type": kind})

    def _take_in(self, tab: Tab, asked: Data) -> Updates:
        """Chats from a piece of a file, which the browser read; it opens the first one at the end."""
        own = self._kept.list(tab.signed_in) if tab.signed_in and self._kept else asked.get("own")
        listed = own if isinstance(own, list) else []
        ids = [str(each.get("id")) for each in listed if isinstance(each, Mapping)]
        tab.came = Imported() if asked.get("begins") else tab.came
        try:
            found = read_chats(_decoded(asked.get("data")), ids)
            rows = [tree.rows() for tree in found]
            if tab.signed_in and self._kept:
                self._kept.take_in(tab.signed_in, found)
                rows = [{"chat": {"id": tree.chat.id}} for tree in found]
        except ChatError as error:
            before = f" {tab.came.told()} The rest of the file is not read." if tab.came.total else ""
            raise ChatError(f"{error}{before}") from None
        tab.came.add(found)
        read, size = (value if isinstance(value := asked.get(key), int) else 0 for key in ("read", "size"))
        status = parts.reading_html(tab.came.total, read, size)
        return {self._page.status: status} | self._page.tell(came=rows)

    def _count(self, tab: Tab, asked: Data) -> Updates:
        """How many tokens the text in the box has, before it is sent."""
        text, host = str(asked.get("text") or ""), self._on.sessions.host
        if entry := host.registry.entries.get(tab.tree.chat.model):
            check_size("The message", len(text.encode("utf-8", "replace")), entry.n_ctx)
        with host.use(tab.tree.chat.model, computes=False) as model:
            tokens, n_ctx = len(model.encoder.encode_text(text)), model.engine.n_ctx
        told = f"The message has {tokens:,} tokens; the model's context is {n_ctx:,}."
        return {self._page.status: (parts.error_html if tokens >= n_ctx else parts.note_html)(told)}


def _decoded(data: Any) -> bytes:
    try:
        return b64decode(str(data), validate=True)
    except ValueError:
        raise ChatError("The file didn't arrive whole. Open it again.") from None


_ACTIONS = {
    "open": Actions._open,
    "fresh": Actions._fresh,
    "gone": Actions._gone,
    "hello": lambda self, tab, asked: {},
    "show": Actions._show,
    "branch": Actions._branch,
    "rate": Actions._rate,
    "vote": Actions._vote,
    "earlier": Actions._earlier,
    "export": Actions._export,
    "import": Actions._take_in,
    "count": Actions._count,
}
