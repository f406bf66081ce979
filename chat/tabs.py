"""Chats in tabs: a change of one, the replies that follow it, and what each makes of the page."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from chat import page_html as parts
from chat.context import TurnState
from chat.gradio_api import user_of
from chat.gradio_import import gr
from chat.page import Following, Page, Tab, Updates
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
    ) -> Updates:
        """Apply `change` to the chat and have its end answered; on a refusal the chat is as it was.

        `stream` and `finish` follow: while a reply grows, an event must have few outputs, as Gradio makes
        each of them anew whether it changes or not (gradio/blocks.py, `postprocess_data`), 1 ms each.
        """
        tab, page = self.tab(request), self.page
        if lost := self.lost(tab, settings[0]):
            return lost
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
            return {page.status: parts.error_html(str(error))}
        tab.undone.clear()
        return self.follow(tab, answers, lambda: _take_back(tab.tree, leaf, known), text, blind)

    def follow(
        self,
        tab: Tab,
        answers: Answers,
        take_back: Callable[[], None] = lambda: None,
        text: str = "",
        blind: bool = False,
    ) -> Updates:
        """Show the chat with replies on their way, which `stream` goes on with."""
        tab.following = Following(answers, take_back, text, blind)
        tab.under_way.append(tab.following)
        tab.compared = []
        # The box is emptied here and never again: what is typed during the reply is the next message.
        box = {"value": ""} if text else {}
        status = {self.page.status: parts.progress_html(TurnState())}
        return self.page.show(tab, answers) | self.page.busy(**box) | status

    def stream(self, request: gr.Request) -> Iterator[Updates]:
        """Show replies as they grow."""
        tab, page, saved, seen = self.tab(request), self.page, 0.0, False
        following = next((each for each in tab.under_way if not each.begun), None)
        if following is None:
            return
        following.begun, answers = True, following.answers
        try:
            for states in follow(answers.replies):
                state = next((each for each in states if not each.done), states[-1])
                updates: Updates = {}
                shown = tab.following is following  # else the tab has another chat, and this one is only kept
                if shown:
                    updates = {page.status: parts.progress_html(state)}
                if shown and state.generated_tokens:
                    updates |= page.growing(answers, seen)
                    seen = any(node.id in answers.tree.nodes for node in answers.nodes)
                if state.prompt_tokens and time.monotonic() - saved > SAVE_INTERVAL_S:
                    saved = time.monotonic()
                    updates |= page.keep(answers.tree, answers.changed_nodes(), False, shown)
                yield updates
            following.status = "".join(parts.stats_html(state.stats) for state in states)
        except ChatError as error:
            following.status = parts.error_html(str(error))
            written = any(node.id in answers.tree.nodes for node in answers.nodes)
            following.refused = not written and not isinstance(error, EngineDied)
        finally:
            following.ended = True
            if answers.ended():
                self.turns.forget(answers)

    def finish(self, request: gr.Request) -> Updates:
        """Show and keep what replies were at their end."""
        tab, updates = self.tab(request), Updates()
        for following in [each for each in tab.under_way if each.ended]:
            tab.under_way.remove(following)
            updates |= self._ended(tab, following)
        return updates

    def _ended(self, tab: Tab, following: Following) -> Updates:
        page, answers, shown = self.page, following.answers, tab.following is following
        if following.refused:
            following.take_back()
        there = answers.question.id in answers.tree.nodes
        kept = page.keep(answers.tree, answers.changed_nodes(), True, shown) if there else {}
        if not shown:
            return kept
        tab.following = None
        box = {"value": following.text} if following.refused and following.text else {}
        status = {page.status: following.status}
        return self._with_replies(tab, following) | page.idle(**box) | status | kept

    def _with_replies(self, tab: Tab, following: Following) -> Updates:
        """The chat with its new replies, or two of them side by side, which wait for a vote."""
        answers = following.answers
        there = [node for node in answers.nodes if node.id in answers.tree.nodes]
        if len(there) < 2:
            return self.page.show(tab)
        tab.compared = there
        names = ("A", "B") if following.blind else [parts.arm_name(node) for node in there]
        return self.page.show(tab, answers) | self.page.voting(names)


def _take_back(tree: Tree, leaf: str, known: set[str]) -> None:
    """Make a turn that was refused undone."""
    for name in set(tree.nodes) - known:
        del tree.nodes[name]
    tree.chat.leaf = leaf
