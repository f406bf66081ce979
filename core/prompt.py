"""Chat messages to token ids: the one renderer and tokenising rule, for training and chatting alike.

Pure: jinja2 and the standard library, no llama.cpp and no torch.

The rule. The rendered chat is tokenised whole, as the reference does. Only where the text of a message holds
the surface of a control token (somebody types `<|im_end|>`) it is cut, and that surface is tokenised as
plain text. To know such places after rendering, each surface travels through the template as one private-use
character that occurs nowhere in the chat; a template can trim, split or lower-case around it but not take it
apart. In the end, the control ids must be those of the same roles with harmless texts. If they aren't (a
template that builds a surface out of pieces), whole messages travel as one character each, and the template
can't look into them at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from core.errors import TemplateError
from core.template import FALLBACK_STOP, FALLBACK_TEMPLATE, REASONING_KEYS, Messages, checked, render

__all__ = ["FALLBACK_STOP", "FALLBACK_TEMPLATE", "Messages", "PromptEncoder", "render"]


@dataclass(frozen=True)
class PromptEncoder:
    """Turns chats into the ids that one model is given.

    `render(messages, add_generation_prompt)` fills the model's template. `tokenize(text, special)` adds no
    BOS; `special` lets the surface of a control token become that token. It is called once for each stretch
    of the prompt between two replies, nearly always with the same arguments as in the turn before: where a
    call is dear, wrap it in `functools.lru_cache`. `control` maps the surface of each token with the
    attribute CONTROL or UNKNOWN, or that ends generation, to its id. `add_bos` is the model's own rule.
    `replies` holds the ids that replies were generated with, by their text.
    """

    render: Callable[[Messages, bool], str]
    tokenize: Callable[[str, bool], Sequence[int]]
    control: Mapping[str, int]
    bos_id: int | None
    add_bos: bool
    replies: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def encode(self, messages: Messages, *, add_generation_prompt: bool = True) -> list[int]:
        """Return the ids of the prompt, with one BOS if the model wants it.

        A reply found in `replies` keeps its ids (tokenising its text again may give others, and then the
        cache holds nothing of what follows), unless the template edits replies or the ids hold a control
        token: then the text counts. Raises TemplateError.
        """
        chat = checked(messages)
        ids = self._guarded(chat, add_generation_prompt)
        allowed = self._control_ids(self._probe(chat, add_generation_prompt))
        if self._control_ids(ids) != allowed:
            ids = self._opaque(chat, add_generation_prompt)
        if self._control_ids(ids) != allowed:
            raise TemplateError(
                "This model's chat template turns text of the chat into control tokens: a message could pose "
                "as somebody else's. Remove the last message or choose another model."
            )
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text that is no chat, with BOS if the model wants it: no control token else."""
        bos = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        return [*bos, *self._literal([], text)]

    def encode_continue(
        self, messages: Messages, pieces: Sequence[tuple[str, bool]] | None = None
    ) -> list[int]:
        """Return the ids of a chat whose last message, a partial reply, is to be continued.

        The reply is put after the generation prompt, where it came from, and no end of turn follows.
        `pieces` are the reply as the model wrote it where that is more than its content: texts, and whether
        each is a mark (around a thought) that is to become tokens of its own. Raises TemplateError.
        """
        if len(messages) < 2 or messages[-1].get("role") != "assistant":
            raise TemplateError("Only a reply can be continued, and the chat doesn't end with one.")
        reply = checked(messages)[-1]
        ids = self.encode(messages[:-1])
        if pieces is None:
            return [*ids, *(self._known(reply) or self._literal(ids, reply["content"]))]
        written = self.replies.get("".join(text for text, _ in pieces))
        if written is None:
            written = []
            for text, is_mark in pieces:
                before = [*ids, *written]
                written += self._following(before, text, True) if is_mark else self._literal(before, text)
        return [*ids, *written]

    def _guarded(self, chat: Messages, generate: bool) -> list[int]:
        """Tokenise with control surfaces in texts hidden from the template and known replies as ids."""
        placeholders = Placeholders(text for message in chat for text in message.values())
        hidden, marked, cores = [], [], {}
        for message in chat:
            safe = {key: self._surfaces.hide(message[key], placeholders) for key in _texts(message)}
            text = safe["content"]
            hidden.append(message | safe)
            core, known = text.strip(), self._known(message)
            if core and known is not None:
                mark = placeholders.for_ids(known)
                cores[mark] = core
                text = f"{mark}{core}{mark}"
            marked.append(message | safe | {"content": text})
        rendered = self.render(hidden, generate)
        if cores:
            rendered = splice(rendered, self.render(marked, generate), cores)
            for mark in cores:
                rendered = rendered.replace(self._space_before_replies + mark, mark)
        return self._ids(rendered, placeholders)

    def _opaque(self, chat: Messages, generate: bool) -> list[int]:
        """Tokenise with the whole text of each message hidden from the template, outer whitespace apart."""
        placeholders = Placeholders(text for message in chat for text in message.values())
        opaque = []
        for message in chat:
            texts, known = {}, self._known(message)
            for key in _texts(message):
                core = message[key].strip()
                in_place = message[key].replace(core, placeholders.for_text(core), 1) if core else ""
                texts[key] = in_place or message[key]
            if known is not None and message["content"].strip():
                texts["content"] = placeholders.for_ids(known)
            opaque.append(message | texts)
        return self._ids(self.render(opaque, generate), placeholders)

    def _probe(self, chat: Messages, generate: bool) -> list[int]:
        """Return the ids of the same roles with texts that hold nothing."""
        harmless = [
            message | {k: f"x{number}" if message[k].strip() else message[k] for k in _texts(message)}
            for number, message in enumerate(chat)
        ]
        return self._ids(self.render(harmless, generate), Placeholders([]))

    def _ids(self, rendered: str, placeholders: Placeholders) -> list[int]:
        """Tokenise what was rendered, cut at the placeholders only, and see to BOS."""
        ids: list[int] = []
        for piece in placeholders.split(rendered):
            insert = placeholders.inserts.get(piece)
            if insert is None:
                ids += self._following(ids, piece, True)
            else:
                ids += self._literal(ids, insert) if isinstance(insert, str) else insert
        if self.bos_id is not None:
            while ids[:2] == [self.bos_id, self.bos_id]:
                del ids[0]
            if self.add_bos and ids[:1] != [self.bos_id]:
                ids.insert(0, self.bos_id)
        return ids

    def _literal(self, before: Sequence[int], text: str) -> Sequence[int]:
        """Tokenise `text` as plain text: no control id, whatever it holds."""
        ids = list(self._following(before, text, False))
        if self._control_ids(ids):
            # A token that ends generation may lack the attribute CONTROL; only taking it apart helps.
            ids = []
            for letter in text:
                ids += (i for i in self._following(ids or before, letter, False) if i not in self._controls)
        return ids

    def _following(self, before: Sequence[int], text: str, special: bool) -> Sequence[int]:
        """Tokenise `text` as what follows `before`.

        SentencePiece vocabularies of the Llama kind put a space before every text that is tokenised on its
        own: there, a line break goes in front and its ids come off again.
        """
        line_break = self._line_break
        if len(line_break) > 1 and before and before[-1] not in self._controls:
            ids = list(self.tokenize("\n" + text, special))
            if ids[: len(line_break)] == line_break:
                return ids[len(line_break) :]
        return self.tokenize(text, special)

    def _known(self, message: dict[str, str]) -> Sequence[int] | None:
        """Return the ids that a reply was generated with, unless a control token is among them."""
        ids = self.replies.get(message["content"]) if message["role"] == "assistant" else None
        return None if ids is None or self._control_ids(ids) else ids

    def _control_ids(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._controls]

    @cached_property
    def _controls(self) -> frozenset[int]:
        return frozenset(self.control.values())

    @cached_property
    def _line_break(self) -> list[int]:
        return list(self.tokenize("\n", False))

    @cached_property
    def _space_before_replies(self) -> str:
        """Whitespace that the template puts before a reply and not at the end of the generation prompt.

        Mistral's do. A reply was generated without it, so its ids bring their own.
        """
        question = {"role": "user", "content": "x"}
        prompt = self.render([question], True)
        replied = self.render([question, {"role": "assistant", "content": "\U00100000"}], False)
        before = replied.partition("\U00100000")[0]
        space = before.removeprefix(prompt)
        return space if before.startswith(prompt) and space.isspace() else ""

    @cached_property
    def _surfaces(self) -> Surfaces:
        return Surfaces(self.control)


def _texts(message: dict[str, str]) -> list[str]:
    """Return the keys of a message under which a template finds text of the chat."""
    return [key for key in ("content", *REASONING_KEYS) if key in message]


_PRIVATE_USE = range(0x100000, 0x10FFFE)  # plane 16
_ANY = re.compile("[\U00100000-\U0010fffd]")


class Placeholders:
    """One private-use character, found nowhere in `texts`, for each thing that is put aside."""

    def __init__(self, texts: Iterable[str]) -> None:
        taken = {letter for text in texts for letter in _ANY.findall(text)}
        self._free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        self._of_text: dict[str, str] = {}
        self.inserts: dict[str, str | Sequence[int]] = {}  # text, to be tokenised as plain text, or ids

    def for_text(self, text: str) -> str:
        """Return the placeholder of `text`, the same one each time."""
        if text not in self._of_text:
            self._of_text[text] = self._next()
            self.inserts[self._of_text[text]] = text
        return self._of_text[text]

    def for_ids(self, ids: Sequence[int]) -> str:
        """Return a new placeholder for `ids`."""
        placeholder = self._next()
        self.inserts[placeholder] = ids
        return placeholder

    def _next(self) -> str:
        for placeholder in self._free:
            return placeholder
        raise TemplateError("This chat uses every private-use character; remove some of them.")

    def split(self, rendered: str) -> list[str]:
        """Cut `rendered` before and after each placeholder; no piece is empty."""
        pieces = re.split(f"([{''.join(self.inserts)}])", rendered) if self.inserts else [rendered]
        return [piece for piece in pieces if piece]


class Surfaces:
    """Finds the surfaces of control tokens in text, the longest ones from the left.

    A set and its lengths, not one pattern of alternatives: vocabularies have up to 6,000 of them, and a
    regular expression would try each at every `<`.
    """

    def __init__(self, surfaces: Iterable[str]) -> None:
        self._surfaces = frozenset(surface for surface in surfaces if surface)
        self._lengths = sorted({len(surface) for surface in self._surfaces}, reverse=True)
        starts = "".join(sorted({re.escape(surface[0]) for surface in self._surfaces}))
        self._start = re.compile(f"[{starts}]" if starts else "(?!)")

    def hide(self, text: str, placeholders: Placeholders) -> str:
        """Return `text` with a placeholder for each surface in it."""
        pieces, done = [], 0
        for start, end in self._find(text):
            pieces += [text[done:start], placeholders.for_text(text[start:end])]
            done = end
        return "".join([*pieces, text[done:]])

    def _find(self, text: str) -> Iterator[tuple[int, int]]:
        at = 0
        while found := self._start.search(text, at):
            start = found.start()
            at = next((start + n for n in self._lengths if text[start : start + n] in self._surfaces), 0)
            if at:
                yield start, at
            at = at or start + 1


def splice(plain: str, marked: str, replies: Mapping[str, str]) -> str:
    """Return `marked` with the placeholder alone for each reply that passed through the template unchanged.

    `replies` holds text by placeholder; in `marked`, each stands between two of its placeholder. `plain` is
    the render without them, and is returned where the template edits replies by what they hold: whitespace
    apart, which templates trim, the two must be the same.
    """
    bare = marked.translate(dict.fromkeys(map(ord, replies)))
    if "".join(bare.split()) != "".join(plain.split()):
        return plain
    for placeholder, text in replies.items():
        pieces = marked.split(f"{placeholder}{text}{placeholder}")
        marked = placeholder.join(piece.replace(placeholder, "") for piece in pieces)
    return marked
