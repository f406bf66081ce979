"""A model that is ready to chat: its file, its engine, and what its template says of prompts and replies."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from core.end_of_turn import EndOfTurn, end_of_turn
from core.engine import Engine, LoadCancelled, wanted
from core.entry import Entry
from core.errors import ModelFileError
from core.gguf_model import GgufFile, read_gguf
from core.gguf_vocab import asking, in_form
from core.machine import check_fits
from core.marks import Render
from core.prompt import FALLBACK_STOP, FALLBACK_TEMPLATE, Messages, PromptEncoder
from core.reasoning import Reasoning
from core.templates import TemplateRenderer

CACHED_TEXT = 16_384  # characters; longer texts are tokenised anew rather than kept

MAX_TOKENS = 1_000_000  # of all replies whose ids are kept; the oldest are forgotten

# An engine for a file, with a context of so many tokens and these keys of the file replaced.
Start = Callable[[GgufFile, int, dict[str, int]], Engine]


class Replies(OrderedDict[str, list[int]]):
    """The ids with which replies were generated, by their text, which may give others when it is tokenised.

    Lives in the app: no ids come back from a browser.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tokens = 0
        self._lock = threading.Lock()

    def remember(self, text: str, ids: list[int]) -> None:
        """Keep `ids` as those of `text`, unless some of them are not known (-1)."""
        if not text or -1 in ids:
            return
        with self._lock:
            self._tokens += len(ids) - len(self.pop(text, []))
            self[text] = ids
            while self._tokens > MAX_TOKENS:
                self._tokens -= len(self.popitem(last=False)[1])


@dataclass
class Model:
    """A loaded model: its file, its engine, the prompts that it understands and the replies that it gave."""

    name: str
    entry: Entry
    file: GgufFile
    engine: Engine
    encoder: PromptEncoder
    replies: Replies
    end: EndOfTurn
    note: str = ""  # what its engine does in another way

    @cached_property
    def reasoning(self) -> Reasoning:
        """How the model marks its thoughts."""
        return Reasoning.of(self.encoder.render, self.file.chat_template or "")

    @property
    def warning(self) -> str:
        """What the page must say about this model; empty when there is nothing."""
        sentences = [self.note] if self.note else []
        if not self.file.chat_template:
            sentences.append(
                f"{self.name} has no chat template: a plain one is used, and replies may wander. "
                "A model made for chat brings its own."
            )
        if self.engine.n_ctx < self.entry.n_ctx:
            sentences.append(
                f"{self.name} has a context of {self.engine.n_ctx:,} tokens, which it was trained on, "
                f"and not the {self.entry.n_ctx:,} of its entry."
            )
        return " ".join(sentences)

    @property
    def stop(self) -> str:
        """The text at which a reply ends; empty for a model whose template has a token for that."""
        return self.end.text if self.file.chat_template else FALLBACK_STOP


def open_model(
    name: str,
    entry: Entry,
    path: Path,
    renderer: TemplateRenderer,
    start: Start,
    replies: Replies,
    cancelled: Callable[[], bool] = wanted,
    now: str = "",
    apart: bool = False,
    elsewhere: bool = False,
) -> Model:
    """Load the file at `path`; its template is told the time `now`, if that is given. Raises ChatError.

    `apart` says that `start` gives a process of its own: it may read a vocabulary that nobody has tried yet.
    `elsewhere` says that its weights run on another machine: here it needs none, nor memory for them.
    """
    file = read_gguf(path)
    if not (file.n_params or elsewhere):
        raise ModelFileError(f"{path.name} holds a vocabulary and no weights; choose the model's other file.")
    n_ctx = min(entry.n_ctx, file.n_ctx_train or entry.n_ctx)
    if not elsewhere:
        check_fits(name, file.file_size, file.kv_bytes_per_token, n_ctx)
    template = file.chat_template or FALLBACK_TEMPLATE

    def render(messages: Messages, add_generation_prompt: bool) -> str:
        bos, eos = file.vocab.bos, file.vocab.eos
        return renderer.render(template, messages, add_generation_prompt, bos, eos, now)

    def probe(messages: Messages, add_generation_prompt: bool) -> str:
        if cancelled():  # a slow template takes seconds each time
            raise LoadCancelled(f"Stopped while {path.name} was being loaded.")
        return render(messages, add_generation_prompt)

    engine = None
    try:
        with asking(file.path, file.chat_template or "") as answer:
            engine = start(file, n_ctx, {}) if apart else None  # beside the answer
            vocab = answer()
        end = end_of_turn(probe, vocab) if file.chat_template else EndOfTurn()
        if engine and end.token is not None:  # few files lack it: a second load is theirs alone
            engine.close()
            engine = None
        engine = engine or start(file, n_ctx, end.overrides(file.keys))
        model = Model(name, entry, file, engine, _encoder(file, engine, render, replies), replies, end)
        marks = model.reasoning.shown(vocab.control)
    except BaseException:
        if engine:
            engine.close()
        raise
    ends = {*vocab.eog_ids, end.token}
    engine.shown = {mark: i for mark, i in vocab.control.items() if mark in marks and i not in ends}
    return model


def _encoder(file: GgufFile, engine: Engine, render: Render, replies: Replies) -> PromptEncoder:
    vocab = file.vocab
    cached = lru_cache(maxsize=256)(engine.tokenize)  # the turns before come again with every turn

    def tokenize(text: str, special: bool) -> list[int]:
        return cached(text, special) if len(text) <= CACHED_TEXT else engine.tokenize(text, special)

    formed = in_form(tokenize, file.unicode_form, vocab.control)
    return PromptEncoder(render, formed, vocab.control, vocab.bos_id, vocab.add_bos, replies)
