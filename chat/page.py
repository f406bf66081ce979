"""The page's components, and what each state of a chat makes of them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from chat import page_html as parts
from chat.formats import Imported
from chat.gradio_import import gr
from chat.model_host import Host
from chat.owner import visitor
from chat.tree import Node, Tree, title_of
from chat.turns import Answers, Arm
from core.engine import Sampling
from core.errors import ChatError

SAMPLING_KEYS = tuple(Sampling.model_fields)
OWN = "As the model has them"  # no choice among its adapters
OFF = "None"

Updates = dict[Any, Any]  # components and what becomes of them


@dataclass(eq=False)
class Following:
    """Replies on their way to a page."""

    answers: Answers
    take_back: Callable[[], None]  # undoes the turn, should it be refused
    text: str = ""  # that was typed, and comes back to the box then
    begun: bool = False
    ended: bool = False
    refused: bool = False
    status: str = ""


@dataclass(eq=False)
class Tab:
    """What a tab of a browser shows."""

    signed_in: str = ""  # who; empty: a visitor, whose browser keeps the chats
    secret: str = ""  # of a visitor's browser
    tree: Tree = field(default_factory=Tree)
    shown: list[str] = field(default_factory=list)  # messages in the chatbot; empty: a note, a thought
    window: int = parts.WINDOW
    undone: list[str] = field(default_factory=list)  # leaves of branches that Redo shows again
    following: Following | None = None  # what the page shows of replies on their way
    untitled: Tree | None = None  # whose first turn has just ended
    under_way: list[Following] = field(default_factory=list)  # with those of chats that it showed before
    came: Imported = field(default_factory=Imported)  # of the file that is read, as far as it is

    @property
    def owner(self) -> str:
        """Whose turns these are."""
        return self.signed_in or visitor(self.secret)


class Page:
    """`chat/screen.py` builds the components; these are the updates that several events share."""

    bus: gr.HTML  # from the page's scripts to the handlers and back
    marks: gr.HTML  # which messages the rows of the chatbot are, for those scripts
    open: gr.Textbox  # the chat that is shown, by id
    menu: gr.Dropdown
    facts: gr.HTML
    earlier: gr.Button
    chatbot: gr.Chatbot
    live: gr.Chatbot  # the reply that is being written
    rival: gr.Chatbot  # and the one that it is compared with
    votes: gr.Row
    status: gr.HTML
    gauge: gr.HTML
    box: gr.Textbox
    extend: gr.Button
    redo: gr.Button
    system: gr.Textbox
    sliders: list[Any]  # one for each of SAMPLING_KEYS
    adapter: gr.Dropdown
    strength: gr.Slider
    json_schema: gr.Textbox
    compare: gr.Checkbox
    other: gr.Dropdown
    blind: gr.Checkbox

    def __init__(self, host: Host) -> None:
        self._host = host
        self._numbers = itertools.count()

    def settings(self) -> list[Any]:
        """What decides about the next reply, as the inputs of an event."""
        drawer = [self.system, *self.sliders, self.adapter, self.strength, self.json_schema]
        return [self.open, self.menu, *drawer]

    def components(self) -> list[Any]:
        """All that events may change."""
        chat = [self.facts, self.earlier, self.chatbot, self.live, self.rival, self.votes, self.extend]
        below = [self.status, self.redo, self.gauge, self.box, self.compare, self.other]
        return [self.bus, self.marks, *chat, *below, *self.settings()]

    def show(self, tab: Tab, answers: Answers | None = None) -> Updates:
        """The chat as it is now. Below it: what `answers` writes, or two replies that wait for a vote."""
        pair = [] if answers else tab.tree.pair()
        below = answers.nodes if answers else pair
        messages, origin = parts.display(tab.tree, tab.window, [node.id for node in below])
        tab.shown = [
            "" if message["metadata"] else name for message, name in zip(messages, origin, strict=True)
        ]
        branch = tab.tree.branch()
        last = branch[-1].message if branch else None
        cut = bool(last and tab.tree.conversation().can_continue()) and not below
        return {
            self.chatbot: messages,
            self.marks: parts.marks(tab.tree, messages, origin),
            self.earlier: gr.Button(visible=len(branch) > tab.window),
            self.extend: gr.Button(visible=cut),
            self.redo: gr.Button(visible=bool(tab.undone)),
            self.open: tab.tree.chat.id,
            self.votes: gr.Row(visible=bool(pair)),
            self.gauge: self._gauge(tab.tree),
        } | self.growing(answers.tree if answers else tab.tree, below, names=parts.pair_names(tab.tree, pair))

    def growing(
        self, tree: Tree, nodes: Sequence[Node], seen: bool = False, names: Sequence[str] = ()
    ) -> Updates:
        """The replies that are being written, without the rest of the chat, or two with whose they are.

        `seen`: they are on the page, and only their texts change. For an update of more than that Gradio
        works out a component's whole configuration (gradio/state_holder.py), 30 ms each time.
        """
        there = [node for node in nodes if node.id in tree.nodes]
        shown: list[Any] = [parts.message_parts(node, not names) if node in there else [] for node in nodes]
        one, two = [*shown, [], []][:2]
        if seen:
            return {self.live: one} | ({self.rival: two} if len(nodes) > 1 else {})
        both = len(nodes) > 1
        left, right = names or ("Chat", "Chat")
        live: Any = gr.Chatbot(one, visible=bool(there) or both, label=left, show_label=bool(names))
        rival: Any = gr.Chatbot(two, visible=both, label=right, show_label=bool(names))
        return {self.live: live, self.rival: rival}

    def keep(self, tree: Tree, nodes: list[Node], done: bool = True, shown: bool = True) -> Updates:
        """What the browser has to keep: the chat's row, and messages that are new or changed.

        `shown`: it is the chat that the tab shows.
        """
        first = next(iter(tree.branch()), None)
        tree.chat.title = tree.chat.title or (title_of(first.message.content) if first else "")
        tree.chat.changed = time.time()
        rows = [node.model_dump(mode="json") for node in nodes]
        told = {"chat": tree.chat.model_dump(mode="json"), "messages": rows}
        return self.tell(keep=told, done=done, **({"open": tree.chat.id} if shown else {}))

    def tell(self, **what: Any) -> Updates:
        """Say something to the page's scripts: a value of the bus that is another one each time."""
        return {self.bus: {"number": next(self._numbers), **what}}

    def nothing(self) -> Updates:
        """No change: an empty dictionary Gradio takes for a value."""
        return {self.bus: gr.skip()}

    def restored(self, tab: Tab) -> Updates:
        """Everything of a chat that was opened, its settings too."""
        chat = tab.tree.chat
        values = (getattr(chat.sampling, key) for key in SAMPLING_KEYS)
        schema = json.dumps(chat.json_schema, indent=2) if chat.json_schema is not None else ""
        return (
            self.show(tab)
            | dict(zip(self.sliders, values, strict=True))
            | {self.menu: self.choices(chat.model), self.system: chat.system_prompt, self.json_schema: schema}
            | self.of_model(chat.model, chat.adapters)
            | self.tell(open=chat.id)
        )

    def of_model(self, name: str, adapters: dict[str, float] | None = None) -> Updates:
        """What the page says about a model, and offers with it."""
        entry = self._host.registry.entries.get(name)
        names = [adapter.name for adapter in entry.adapters] if entry else []
        strength = next(iter((adapters or {}).items()), None)
        chosen = OWN if strength is None else OFF if not strength[1] else strength[0]
        return {
            self.facts: parts.facts_html(self._host, name),
            self.adapter: gr.Dropdown(choices=[OWN, OFF, *names], value=chosen, visible=bool(names)),
            self.strength: gr.Slider(value=strength[1] if strength else 1.0, visible=chosen in names),
            self.other: gr.Dropdown(choices=[(label, label) for label in self.arms()]),
        }

    def arms(self) -> dict[str, Arm]:
        """Whom a reply can be compared with: each model, and those that have adapters without them."""
        found: dict[str, Arm] = {}
        for name, entry in self._host.registry.entries.items():
            found[name] = Arm(name)
            if entry.adapters:
                found[f"{name} without adapters"] = Arm(name, {each.name: 0.0 for each in entry.adapters})
        return found

    def apply(self, values: tuple[Any, ...], tree: Tree) -> None:
        """Take over `settings` as they came from the page. Raises ChatError."""
        _, model, system, *sampling, adapter, strength, schema = values
        chat = tree.chat
        try:
            chat.sampling = Sampling.model_validate(dict(zip(SAMPLING_KEYS, sampling, strict=True)))
            chat.system_prompt = system or ""
            chat.json_schema = read_schema(schema)
            chat.use_model(model := model or self._host.default)
            entry = self._host.registry.entries.get(model)
            names = [each.name for each in entry.adapters] if entry else []
            off = dict.fromkeys(names, 0.0) if adapter == OFF else {}
            chat.adapters = {adapter: strength} if adapter in names else off
        except ValidationError as error:
            raise ChatError(parts.refusal(error)) from error

    def choices(self, value: str) -> Any:
        """The model menu: a download changes what it says."""
        return gr.Dropdown(choices=self._host.menu(), value=value, interactive=True)

    def busy(self, model: str, **box: Any) -> Updates:
        """While a reply is written or `model` loaded, Stop is the one thing to press."""
        return {
            self.box: gr.Textbox(submit_btn=False, stop_btn="Stop", **box),
            self.menu: gr.Dropdown(value=model, interactive=False),
        }

    def idle(self, model: str, **box: Any) -> Updates:
        """Ready for the next message to `model`. What was typed meanwhile stays in the box."""
        return {
            self.box: gr.Textbox(submit_btn="Send", stop_btn=False, **box),
            self.menu: gr.Dropdown(value=model, interactive=True),
        }

    def _gauge(self, tree: Tree) -> str:
        entry = self._host.registry.entries.get(tree.chat.model)
        return parts.gauge_html(tree.chat.tokens, entry.n_ctx) if entry and tree.chat.tokens else ""


def read_schema(text: Any) -> dict[str, Any] | None:
    """The JSON schema that was typed. Raises ChatError: it is none."""
    if not (text or "").strip():
        return None
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"The JSON schema is not JSON: {error}.") from None
    if not isinstance(schema, dict):
        raise ChatError('The JSON schema is no object. Write one, as {"type": "object", "properties": {}}.')
    return schema
