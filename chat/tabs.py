"""Chats in tabs: a change of one, the replies that follow it, and what each makes of the page."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from chat import page_html as parts
from chat.gradio_api import user_of
from chat.gradio_import import gr
from chat.page import Page, Tab, Updates
from chat.reply import Sessions
from chat.running import SAVE_INTERVAL_S, follow
from chat.tree import Node, Tree
from chat.turns import Answers, Arm, Busy, Turns
from core.errors import ChatError, EngineDied

Change = Callable[[Tree], Any]


class Tabs:
    """What each tab of a browser shows: one chat, which is answered once at a time, whatever tab asks."""

    def __init__(self, sessions: Sessions, page: Page, turns: Turns, owner_of: Callable[[Any], str]) -> None:
        self.sessions, self.page, self.turns, self._owner_of = sessions, page, turns, owner_of
        self._tabs: dict[str, Tab] = {}
        self._loading: set[str] = set()  # tabs that wait for a model

    def lost(self, tab: Tab, open_id: str) -> Updates:
        """What to do where the app has been started anew since the page was drawn: open its chat again."""
        if not open_id or open_id == tab.tree.chat.id:
            return {}
        told = "The app was started again meanwhile. The chat is opened anew; send that once more."
        return {self.page.status: parts.error_html(told)} | self.page.tell(lost=True)

    def tab(self, request: gr.Request) -> Tab:
        key = str(request.session_hash)
        if key not in self._tabs:
            self._tabs[key] = Tab(self._owner_of(request))
            self._tabs[key].tree.chat.model = self.sessions.host.default
        return self._tabs[key]

    def busy(self, tab: Tab) -> Answers | None:
        answers = self.turns.find(tab.owner, tab.tree.chat.id)
        return None if answers is None or answers.ended() else answers

    def changed(self, tab: Tab, change: Change, note: str = "") -> Updates:
        """Apply `change` to the chat, which asks the model nothing."""
        before = tab.tree.chat.leaf
        try:
            if self.busy(tab):
                raise Busy
            change(tab.tree)
        except ChatError as error:
            tab.tree.chat.leaf = before
            return {self.page.status: parts.error_html(str(error))}
        leaf = tab.tree.chat.leaf
        kept = self.keep(tab, [tab.tree.nodes[leaf]] if leaf else [])
        return self.page.show(tab) | {self.page.status: parts.note_html(note)} | kept

    def keep(self, tab: Tab, nodes: list[Node]) -> Updates:
        """Keep what changed: here for those who signed in, in the browser for visitors."""
        self.turns.keep(tab.owner, tab.tree, nodes)
        return self.page.keep(tab.tree, nodes)

    def turn(
        self,
        request: gr.Request,
        settings: tuple[Any, ...],
        change: Change,
        text: str = "",
        extend: bool = False,
        rival: Arm | None = None,
        blind: bool = False,
    ) -> Iterator[Updates]:
        """Apply `change` to the chat and have its end answered; on a refusal the chat is as it was."""
        tab, page = self.tab(request), self.page
        if lost := self.lost(tab, settings[0]):
            yield lost
            return
        leaf, known = tab.tree.chat.leaf, set(tab.tree.nodes)
        try:
            if self.busy(tab) or str(request.session_hash) in self._loading:
                raise Busy
            page.apply(settings, tab.tree)
            change(tab.tree)
            arms = [Arm(tab.tree.chat.model, tab.tree.chat.adapters), *([rival] if rival else [])]
            if blind and rival and random.random() < 0.5:
                arms.reverse()
            answers = self.turns.begin(tab.tree, tab.owner, user_of(request), arms, extend)
        except ChatError as error:
            _take_back(tab.tree, leaf, known)
            yield {page.status: parts.error_html(str(error))}
            return
        tab.undone.clear()
        yield from self.follow(tab, answers, lambda: _take_back(tab.tree, leaf, known), text, blind)

    def follow(
        self,
        tab: Tab,
        answers: Answers,
        take_back: Callable[[], None] = lambda: None,
        text: str = "",
        blind: bool = False,
    ) -> Iterator[Updates]:
        """Show replies as they grow, and what they were at the end."""
        page, saved, mark = self.page, 0.0, object()
        tab.compared, tab.following = [], mark
        # The box is emptied here and never again: what is typed during the reply is the next message.
        box = {"value": ""} if text else {}
        yield page.show(tab, answers) | page.busy(**box)
        status: Updates = {}
        try:
            for states in follow(answers.replies):
                state = next((each for each in states if not each.done), states[-1])
                updates: Updates = {}
                if tab.following is mark:  # else the tab shows another chat by now, and this one is only kept
                    updates = {page.status: parts.progress_html(state)}
                    updates |= page.growing(answers) if state.generated_tokens else {}
                if state.prompt_tokens and time.monotonic() - saved > SAVE_INTERVAL_S:
                    saved = time.monotonic()
                    updates |= page.keep(answers.tree, answers.changed_nodes(), False, tab.following is mark)
                yield updates
            status = {page.status: "".join(parts.stats_html(state.stats) for state in states)}
        except ChatError as error:
            status = {page.status: parts.error_html(str(error))}
            written = any(node.id in answers.tree.nodes for node in answers.nodes)
            if not written and not isinstance(error, EngineDied):
                take_back()
                status |= page.idle(**({"value": text} if text else {}))
        finally:
            if answers.ended():
                self.turns.forget(answers)
        shown, there = tab.following is mark, answers.question.id in answers.tree.nodes
        kept = page.keep(answers.tree, answers.changed_nodes(), True, shown) if there else {}
        if shown:
            tab.following = None
            kept |= self._ended(tab, answers, blind) | page.idle() | status
        yield kept

    def _ended(self, tab: Tab, answers: Answers, blind: bool) -> Updates:
        """The chat with its new replies, or two of them side by side, which wait for a vote."""
        page = self.page
        there = [node for node in answers.nodes if node.id in answers.tree.nodes]
        if len(there) < 2:
            return page.show(tab)
        tab.compared = there
        names = ("A", "B") if blind else [parts.arm_name(node) for node in there]
        return page.show(tab, answers) | page.voting(names)


def _take_back(tree: Tree, leaf: str, known: set[str]) -> None:
    """Make a turn that was refused undone."""
    for name in set(tree.nodes) - known:
        del tree.nodes[name]
    tree.chat.leaf = leaf
