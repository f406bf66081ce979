"""What happens when somebody presses something: a handler changes the tab's chat, and yields the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chat import branching
from chat import page_html as parts
from chat.gradio_import import gr
from chat.markup import typed
from chat.page import OFF, OWN, SAMPLING_KEYS, Tab, Updates
from chat.tabs import Change, Tabs
from chat.tree import Node, Tree
from chat.turns import Busy
from core.errors import ChatError

NOT_THERE = "This is no message of the chat that could be changed."


class Handlers(Tabs):
    """The page's event handlers."""

    def send(
        self, text: str, compare: bool, other: str, blind: bool, request: gr.Request, *settings: Any
    ) -> Updates:
        """Answer what was typed, by two models if they are to be compared."""
        rival = self.page.arms().get(other or "") if compare else None
        if compare and rival is None:
            return {self.page.status: parts.error_html("Choose whom to compare with, or switch Compare off.")}
        change: Change = lambda tree: branching.ask(tree, text or "")  # noqa: E731
        return self.turn(request, settings, change, text or "", rival=rival, blind=blind)

    def example(self, data: gr.SelectData, request: gr.Request, *settings: Any) -> Updates:
        """Answer an example that was picked."""
        return self.turn(request, settings, lambda tree: branching.ask(tree, data.value["text"]))

    def retry(self, data: gr.RetryData, request: gr.Request, *settings: Any) -> Updates:
        """Answer a question again; the reply that is there stays beside the new one."""
        return self.turn(request, settings, branching.again)

    def edit(self, data: gr.EditData, request: gr.Request, *settings: Any) -> Updates:
        """Answer a question in its new words, or keep a reply as somebody would have it."""
        tab, text = self.tab(request), typed(str(data.value))
        if lost := self.lost(tab, settings[0]):
            return lost
        if (node := _pointed_at(tab, data.index)) is None:
            return {self.page.status: parts.error_html(NOT_THERE)} | self.page.show(tab, self.busy(tab))
        if node.message.role == "user":
            return self.turn(request, settings, lambda tree: branching.edit(tree, node.id, text))
        return self.changed(tab, lambda tree: branching.rewrite(tree, node.id, text), "Kept as edited.")

    def extend(self, request: gr.Request, *settings: Any) -> Updates:
        """Go on with a reply that was cut."""

        def change(tree: Tree) -> None:
            if not tree.conversation().can_continue():
                raise ChatError("The last reply is complete; there is nothing to continue.")

        return self.turn(request, settings, change, extend=True)

    def undo(self, draft: str, open_id: str, request: gr.Request) -> Updates:
        """Leave the last question and its reply, which Redo brings back; the question returns to the box."""
        tab, texts = self.tab(request), list[str]()
        if lost := self.lost(tab, open_id):
            return lost

        def change(tree: Tree) -> None:
            leaf = tree.chat.leaf
            texts.append(branching.undo(tree))
            tab.undone.append(leaf)

        updates = self.changed(tab, change)
        return updates | ({self.page.box: draft or texts[0]} if texts else {})

    def redo(self, open_id: str, request: gr.Request) -> Updates:
        """Bring back what was undone last."""
        tab = self.tab(request)
        if lost := self.lost(tab, open_id):
            return lost

        def change(tree: Tree) -> None:
            if not tab.undone:
                raise ChatError("There is nothing to redo.")
            branching.switch(tree, tab.undone.pop())

        return self.changed(tab, change)

    def stop(self, request: gr.Request) -> None:
        """Stop the tab's reply or download. Not queued, or it would wait for what it is to stop."""
        tab = self.tab(request)
        self.turns.stop(tab.owner, tab.tree.chat.id)
        self.sessions.stop(str(request.session_hash))

    def leave(self, request: gr.Request) -> None:
        """The tab was closed, reloaded, or its line broke. A reply goes on for a while: it may come back."""
        self.sessions.stop(str(request.session_hash))

    def load(self, request: gr.Request) -> Updates:
        """An empty chat, until the page's script says which one to open."""
        tab = self.tab(request)
        warning = parts.note_html(self.sessions.host.warning(tab.tree.chat.model))
        defaults = self.defaults(tab.tree.chat.model) if tab.tree.chat.model else {}
        return self.page.show(tab) | defaults | {self.page.status: warning}

    def choose_adapter(self, name: str) -> Updates:
        """A strength belongs to an adapter that was chosen."""
        return {self.page.strength: gr.Slider(visible=name not in (OWN, OFF))}

    def choose(self, name: str, open_id: str, request: gr.Request) -> Iterator[Updates]:
        """Load a model, downloading it if need be, and go on with it; else stay with the one before."""
        tab, page, key = self.tab(request), self.page, str(request.session_hash)
        if lost := self.lost(tab, open_id):
            yield lost
            return
        tree, before = tab.tree, tab.tree.chat.model or self.sessions.host.default
        if key in self._loading or self.busy(tab):
            yield {page.status: parts.error_html(str(Busy())), page.menu: page.choices(before)}
            return
        self._loading.add(key)
        try:
            yield page.busy(name) | {page.status: parts.note_html(f"Loading {name}…")}
            for done, total in self.sessions.prepare(key, name):
                yield {page.status: parts.download_html(name, done, total)}
        except ChatError as error:
            told = f"{parts.sentence(str(error))} The chat goes on with {before}."
            if tab.tree is tree:
                yield page.idle(before) | {
                    page.menu: page.choices(before),
                    page.status: parts.error_html(told),
                }
            return
        finally:
            self._loading.discard(key)
        if tab.tree is not tree:  # the tab shows another chat by now
            return
        tree.chat.use_model(name)
        ready = parts.note_html(self.sessions.host.warning(name) or f"{name} is ready.")
        kept = self.keep(tab, []) if tree.nodes else {}
        yield page.idle(name) | page.show(tab) | self.defaults(name) | {page.status: ready} | kept

    def defaults(self, name: str) -> Updates:
        """The model with what its entry says about how to use it."""
        entry, page = self.sessions.host.registry.entries[name], self.page
        updates: Updates = {page.menu: page.choices(name)} | page.of_model(name)
        if entry.system_prompt is not None:
            updates[page.system] = entry.system_prompt
        for key in entry.sampling.model_fields_set:
            updates[page.sliders[SAMPLING_KEYS.index(key)]] = getattr(entry.sampling, key)
        return updates


def _pointed_at(tab: Tab, index: Any) -> Node | None:
    """The message in a place of the chatbot; None for a note, a thought, or no place at all."""
    try:
        return tab.tree.node(tab.shown[index if isinstance(index, int) else index[0]])
    except (ChatError, IndexError, TypeError):
        return None
