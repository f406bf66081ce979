"""Which models engines elsewhere have, as the menu shows them, and how each is spoken to.

A model of `models.json` whose GGUF is here (its vocabulary is enough) is spoken to by token ids, so that
prompt, control tokens, budget and continued replies are ours. Where there is none, or the engine takes no
ids, the chat goes there as messages, and a note says what isn't ours then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePath

from chat.remote import LONGEST_NAME, Endpoint, read_addresses
from chat.remote_engine import RemoteEngine, Served
from chat.remote_reply import ONLY_MESSAGES, packed
from chat.remote_vocab import Tokenizer, difference
from core.end_of_turn import EndOfTurn
from core.engine import Engine
from core.entry import Entry
from core.errors import ChatError, TemplateError
from core.gguf_model import GgufFile
from core.gguf_reader import model_name
from core.gguf_vocab import Tokenize
from core.model import Model, Replies, open_model
from core.prompt import Messages, PromptEncoder
from core.registry import Registry
from core.templates import TemplateRenderer


class Elsewhere:
    """Engines elsewhere and their models. Making one asks them all; raises ChatError if none can be used."""

    def __init__(self, addresses: str, keys: str) -> None:
        self.endpoints = read_addresses(addresses, keys)
        with ThreadPoolExecutor(len(self.endpoints)) as pool:
            list(pool.map(Endpoint.look, self.endpoints))
        self.notes = {endpoint.url: endpoint.reason for endpoint in self.endpoints if not endpoint.up}
        if len(self.notes) == len(self.endpoints):
            why = "; ".join(f"{url}: {reason}" for url, reason in self.notes.items())
            raise ChatError(f"no engine can be used: {why}")
        self._served: dict[str, Served] = {}
        self._tokenizers: dict[str, Tokenizer] = {}  # by the names of entries
        self._lock = threading.Lock()

    @property
    def about(self) -> str:
        """What the page says of all of them."""
        where = [f"{e.kind} at {e.url}" if e.up else f"none yet at {e.url}" for e in self.endpoints]
        notes = dict.fromkeys(served.note for served in self._served.values())
        return "\n\n".join([", ".join(where), *notes])  # nothing that an engine said: this is Markdown

    @property
    def models(self) -> list[str]:
        """The names of all models, as their engines have them."""
        return list(dict.fromkeys(name for endpoint in self.endpoints for name in endpoint.models))

    def menu(self, registry: Registry, chosen: str) -> Registry:
        """The models that the engines have; those that `registry` knows by its names.

        `chosen`, an entry, is what they have, whatever they call it, or else the name of one of theirs.
        """
        self._registry, self._chosen = registry, chosen
        for endpoint in self.endpoints:
            if endpoint.up:
                self._place(endpoint, new=True)
            threading.Thread(
                target=endpoint.watch, args=(self._place,), name="engine elsewhere", daemon=True
            ).start()
        first = {_label(chosen): self._served[_label(chosen)]} if _label(chosen) in self._served else {}
        self._served = first | self._served
        entries = {name: served.entry for name, served in self._served.items()}
        return replace(registry, entries=entries, broken=self.notes)

    def labels(self) -> list[tuple[str, str]]:
        """(label, name) of each model."""
        return [
            (f"{name} \u00b7 elsewhere" + ("" if served.tokenizer else ", by messages"), name)
            for name, served in self._served.items()
        ]

    def _place(self, endpoint: Endpoint, new: bool = False) -> None:
        """See which models of the menu an engine has; add others only if the menu is `new`."""
        with self._lock:
            for served in self._served.values():
                served.at = {there: name for there, name in served.at.items() if there is not endpoint}
        for model, n_ctx in endpoint.models.items():
            tokenizer, name, why = self._by_ids(endpoint, model)
            there_only = Entry.model_construct(sources=[], n_ctx=n_ctx)
            entry = self._registry.entries[name] if tokenizer else there_only
            with self._lock:
                if new:
                    served = self._served.setdefault(name, Served(name, entry, tokenizer, why))
                    least = min(n_ctx, served.entry.n_ctx)
                    served.entry = served.entry.model_copy(update={"n_ctx": least, "adapters": []})
                there = self._served.get(name)
                if there is None or bool(there.tokenizer) != bool(tokenizer) or n_ctx < there.entry.n_ctx:
                    self.notes[f"{name} at {endpoint.url}"] = "it isn't the model that another engine has"
                else:
                    there.at = there.at | {endpoint: model}

    def _by_ids(self, endpoint: Endpoint, model: str) -> tuple[Tokenizer | None, str, str]:
        """The tokenizer here of a model there and its name in the menu; or none, its name there, and why."""
        known = self._known(endpoint, model)
        if not known or endpoint.kind == "OpenAI's API":
            return None, _label(model), ""
        path = self._registry.locate(self._registry.entries[known])
        assert path
        try:
            if known not in self._tokenizers:
                self._tokenizers[known] = Tokenizer(path)
            why = difference(self._tokenizers[known], endpoint, model)
        except ChatError as error:
            why = str(error).rstrip(".")
        return (None, _label(model), why) if why else (self._tokenizers[known], known, "")

    def _known(self, endpoint: Endpoint, model: str) -> str:
        """The name of the entry whose GGUF is here and which an engine's model is; empty if there is none."""
        entries = {
            name: entry for name, entry in self._registry.entries.items() if self._registry.locate(entry)
        }
        if self._chosen in entries and len(endpoint.models) == 1:
            return self._chosen
        names = {model, _label(model)}
        for name, entry in entries.items():
            files = {
                model_name(PurePath(source.path or source.filename or "").name) for source in entry.sources
            }
            if names & {name, *files, "" if entry.run else entry.base}:
                return name
        return ""

    def open(
        self, name: str, renderer: TemplateRenderer, replies: Replies, cancelled: Callable[[], bool]
    ) -> Model:
        """The model called `name`, ready to chat. Raises ChatError."""
        served = self._served[name]

        def start(file: GgufFile | None, n_ctx: int, overrides: dict[str, int]) -> Engine:
            return RemoteEngine(served, n_ctx, overrides)

        if served.tokenizer:
            path = served.tokenizer.file.path
            model = open_model(name, served.entry, path, renderer, start, replies, cancelled, elsewhere=True)
        else:
            engine = start(None, served.entry.n_ctx, {})
            nothing = GgufFile(Path(), (), 0, "", name, 0, 0, 0, None, "the engine's own", 0, "", frozenset())
            model = Model(
                name, served.entry, nothing, engine, MessagesEncoder(engine.tokenize), replies, EndOfTurn()
            )
        model.note = f"{served.note} The reason: {served.why}." if served.why else served.note
        return model

    def close(self) -> None:
        for endpoint in self.endpoints:
            endpoint.close()
        for tokenizer in self._tokenizers.values():
            tokenizer.close()


class MessagesEncoder(PromptEncoder):
    """Leaves a chat as it is, for an engine that fills the template itself."""

    def __init__(self, tokenize: Tokenize) -> None:
        super().__init__(_no_template, tokenize, {}, None, False)

    def encode(self, messages: Messages, *, add_generation_prompt: bool = True) -> list[int]:
        return packed(messages)

    def encode_continue(self, messages: Messages, pieces: object = None) -> list[int]:
        raise ChatError(f"{ONLY_MESSAGES} A reply can't be continued there; retry the turn.")


def _no_template(messages: Messages, add_generation_prompt: bool) -> str:
    raise TemplateError(ONLY_MESSAGES)


def _label(model: str) -> str:
    """A model's name for the menu: of a file's path, its last part."""
    name = model_name(PurePath(model).name) if model.endswith(".gguf") else model
    return name[-LONGEST_NAME:]
