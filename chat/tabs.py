"""Chats in tabs: a change of one, the replies that follow it, and what each makes of the page."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from chat import page_html as parts
from chat.context import TurnState
from chat.gradio_api import user_of
from chat.gradio_import import gr
from chat.kept import Kept, NoSuchChat
from chat.page import Following, Page, Tab, Updates
from chat.reply import Sessions
from chat.running import SAVE_INTERVAL_S, follow
from chat.titles import titled, wants_title
from chat.tree import Node, Tree
from chat.turns import Answers, Arm, Busy, Turns
from core.errors import ChatError, EngineDied

LOST = "The app was started again, or another chat opened. Send that once more."
MAX_TABS = 512  # that the app knows the chats of: a client can have as many as it likes
MAX_FOLLOWERS = 8  # pages that follow one reply: each has a thread

Change = Callable[[Tree], Any]


class Tabs:
    """What each tab of a browser shows: one chat, which is answered once at a time, whatever tab asks."""

    def __init__(
        self,
        sessions: Sessions,
        page: Page,
        turns: Turns,
        owner_of: Callable[[Any], str],
        kept: Kept | None = None,
        titles: bool = False,
    ) -> None:
        self.sessions, self.page, self.turns = sessions, page, turns
        self._owner_of, self._kept, self.titles = owner_of, kept, titles
        self._tabs: dict[str, Tab] = {}  # the one used last at the end
        self._loading: set[str] = set()  # tabs that wait for a model

    def tab(self, request: gr.Request) -> Tab:
        """The tab that an event comes from. Who owns it is asked each time: people sign out."""
        key, owner = str(request.session_hash), self._owner_of(request)
        tab = self._tabs.pop(key, None)
        if tab is None or tab.signed_in != owner:
            tab = Tab(owner)
            tab.tree.chat.model = self.sessions.host.default
        self._tabs[key] = tab
        for old in list(self._tabs)[: max(0, len(self._tabs) - MAX_TABS)]:
            del self._tabs[old]  # its page opens its chat again, if it is there still
        return tab

    def lost(self, tab: Tab, open_id: str) -> Updates:
        """What to do where the app knows the page's chat no more, or shows another one: open it again.

        For those who signed in, the tab has the chat as it is by now: another device may have changed it.
        """
        if open_id and open_id != tab.tree.chat.id:
            return {self.page.status: parts.error_html(LOST)} | self.page.tell(lost=True)
        if tab.signed_in and self._kept and not self.busy(tab):
            with suppress(NoSuchChat):
                tab.tree = self._kept.read(tab.signed_in, tab.tree.chat.id)
        return {}

    def busy(self, tab: Tab) -> Answers | None:
        answers = self.turns.find(tab.owner, tab.tree.chat.id)
        return None if answers is None or answers.ended() else answers

    def changed(self, tab: Tab, change: Change, note: str = "") -> Updates:
        """Apply `change` to the chat, which asks the model nothing."""
        tree, known, take_back = tab.tree, set(tab.tree.nodes), _undoing(tab.tree)
        try:
            if self.busy(tab):
                raise Busy
            change(tree)
            tree.chat.compared = None
            kept = self.keep(tab, [node for name, node in tree.nodes.items() if name not in known])
        except ChatError as error:
            take_back()
            return {self.page.status: parts.error_html(str(error))}
        return self.page.show(tab) | {self.page.status: parts.note_html(note)} | kept

    def keep(self, tab: Tab, nodes: list[Node]) -> Updates:
        """Keep what changed: here for those who signed in, in the browser for visitors. Raises ChatError."""
        told = self.page.keep(tab.tree, nodes)
        self.turns.keep(tab.owner, tab.tree, nodes)
        return told

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
        tree, take_back = tab.tree, _undoing(tab.tree)
        try:
            if self.busy(tab) or str(request.session_hash) in self._loading:
                raise Busy
            page.apply(settings, tree)
            change(tree)
            arms = [Arm(tree.chat.model, tree.chat.adapters), *([rival] if rival else [])]
            if blind and rival and random.random() < 0.5:
                arms.reverse()
            answers = self.turns.begin(tree, tab.owner, user_of(request), arms, extend, blind)
        except ChatError as error:
            take_back()
            return {page.status: parts.error_html(str(error))}
        tab.undone.clear()
        return self.follow(tab, answers, take_back, text)

    def follow(
        self,
        tab: Tab,
        answers: Answers,
        take_back: Callable[[], None] = lambda: None,
        text: str = "",
    ) -> Updates:
        """Show the chat with replies on their way, which `stream` goes on with."""
        tab.following = Following(answers, take_back, text)
        tab.under_way.append(tab.following)
        # The box is emptied here and never again: what is typed during the reply is the next message.
        box = {"value": ""} if text else {}
        status = {self.page.status: parts.progress_html(TurnState())}
        draft = self.page.tell(draft=text) if text else {}
        return self.page.show(tab, answers) | self.page.busy(answers.tree.chat.model, **box) | status | draft

    def stream(self, request: gr.Request) -> Iterator[Updates]:
        """Show replies as they grow."""
        tab, page, saved, seen = self.tab(request), self.page, 0.0, False
        yield page.nothing()  # of a generator that yields nothing, Gradio empties all outputs
        following = next((each for each in tab.under_way if not each.begun), None)
        if following is None or sum(reply.followers for reply in following.answers.replies) > MAX_FOLLOWERS:
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
                    updates |= page.growing(answers.tree, answers.nodes, seen)
                    seen = any(node.id in answers.tree.nodes for node in answers.nodes)
                due = state.prompt_tokens and time.monotonic() - saved > SAVE_INTERVAL_S
                if due and not answers.gone:
                    saved = time.monotonic()
                    updates |= page.keep(answers.tree, answers.changed_nodes(), False, shown)
                if updates:
                    yield updates
            compared = answers.tree.chat.compared
            blind = compared is not None and compared.blind
            following.status = parts.ended_html([state.stats for state in states], blind)
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
        tab, updates, told = self.tab(request), Updates(), list[dict[str, Any]]()
        for following in [each for each in tab.under_way if each.ended]:
            tab.under_way.remove(following)
            updates |= self._ended(tab, following)
            told += [updates.pop(self.page.bus)] if self.page.bus in updates else []
        if told:
            keeps = [each["keep"] for each in told if "keep" in each]
            opened = next(({"open": each["open"]} for each in told if "open" in each), {})
            updates |= self.page.tell(keep=keeps, done=True, draft="", **opened)
        return updates or self.page.nothing()

    def _ended(self, tab: Tab, following: Following) -> Updates:
        page, answers, shown = self.page, following.answers, tab.following is following
        if following.refused:
            following.take_back()
        updates = Updates()
        if answers.question.id in answers.tree.nodes and not answers.gone:
            updates = page.keep(answers.tree, answers.changed_nodes(), True, shown)
            try:
                self.turns.keep(answers.owner, answers.tree, answers.changed_nodes())
            except ChatError as error:
                following.status = parts.error_html(str(error))
        elif following.refused:
            updates = page.tell(draft="")
        if not shown:
            return updates
        tab.following = None
        tab.untitled = answers.tree if wants_title(answers.tree) else None
        box = {"value": following.text} if following.refused and following.text else {}
        updates |= page.show(tab) | page.idle(answers.tree.chat.model, **box)
        return updates | {page.status: following.status}

    def entitle(self, request: gr.Request) -> Updates:
        """After the first turn of a chat, give it a better title than the beginning of its question."""
        tab, page = self.tab(request), self.page
        tree, tab.untitled = tab.untitled, None
        title = titled(self.sessions, tree, f"title {request.session_hash}") if tree and self.titles else ""
        if not tree or not title or not wants_title(tree):  # meanwhile it may have gone on
            return page.nothing()
        automatic, tree.chat.title = tree.chat.title, title
        if not tab.signed_in or not self._kept:
            return page.keep(tree, [], shown=tab.tree is tree)
        with suppress(ChatError):  # it may be deleted by now
            self._kept.change(tab.signed_in, tree.chat.id, title=title, instead_of=automatic)
        return page.tell(keep={"chat": tree.chat.model_dump(mode="json"), "messages": []}, done=True)


def _undoing(tree: Tree) -> Callable[[], None]:
    """What makes a turn undone that was refused."""
    leaf, compared, known = tree.chat.leaf, tree.chat.compared, set(tree.nodes)

    def take_back() -> None:
        for name in set(tree.nodes) - known:
            del tree.nodes[name]
        tree.chat.leaf, tree.chat.compared = leaf, compared

    return take_back
