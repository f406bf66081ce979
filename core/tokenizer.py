"""A base's tokenizer with what training must know of it: chat template, BOS rule, stop tokens, padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig
from transformers.utils.hub import cached_file

from core.errors import TrainError
from core.files import VOCABULARY, Rendered, rendered_with
from core.prompt import FALLBACK_TEMPLATE, PromptEncoder, render
from core.reasoning import Thoughts
from core.template import CONFIG, DEFAULT, FILE, PROCESSOR, ChatTemplate, find_template

_MARK = "zreplyz"
# Of transformers' `cached_file`: a file that isn't there, or not yet and nothing can be fetched, is none.
_QUIETLY = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")


class ChatTokenizer:
    """Tokenizes with the template that came with the base, unedited, wherever in its files it stands.

    `stop_ids`: all ids that end a reply, by the generation config, the tokenizer and the template.
    `stop_surfaces`: their texts. `thoughts`: what the template does with those of a reply.
    `pad_id`: a token that is none of them, or None where the vocabulary has no other.
    `rendered`: the time that the template is told, in ISO format, for some write the date: one for all rows.
    """

    def __init__(self, folder: str | Path, revision: str | None = None, rendered: str = "") -> None:
        """Load it; `rendered`: when a run that goes on was begun, now where it is empty."""
        self.rendered = rendered or datetime.now().isoformat(timespec="seconds")
        self._source = str(folder), revision
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
        if not self.tokenizer.is_fast:
            raise TrainError(f"{str(folder)!r} has no tokenizer.json, and none could be made of its files")
        self._backend = self.tokenizer.backend_tokenizer
        self.template: str = self._find_template(folder, revision)
        self.thoughts = Thoughts(self._fill, self.template)
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self.adds_bos = adds_bos(self.tokenizer)
        special = {
            i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        special |= dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        self.stop_ids = self._stop_ids(folder, revision, special)
        self.stop_surfaces = [str(self.tokenizer.convert_ids_to_tokens(i)) for i in sorted(self.stop_ids)]
        control = special | {i: self.tokenizer.convert_ids_to_tokens(i) for i in self.stop_ids}
        self.encoder = PromptEncoder(
            render=self.render,
            tokenize=lru_cache(4096)(self._tokenize),
            control={str(text): i for i, text in control.items()},
            bos_id=self.bos_id,
            add_bos=self.adds_bos,
        )
        self.pad_id = self._pad_id(special)

    def _find_template(self, folder: str | Path, revision: str | None) -> str:
        """The template that the conversion finds too. Empty if there is none."""
        folders = [Path(folder)]
        if not folders[0].is_dir():  # a hub name: transformers has fetched some of the places, not all
            options: dict[str, Any] = {"revision": revision} | dict.fromkeys(_QUIETLY, False)
            found = [cached_file(folder, name, **options) for name in (CONFIG, FILE, PROCESSOR)]
            folders = [Path(path).parent for path in found if path]
        template = find_template(folders)
        given = self.tokenizer.chat_template
        if template.text != (given.get(DEFAULT) if isinstance(given, dict) else given):
            named = {DEFAULT: template.text, **template.others} if template.others else template.text
            self.tokenizer.chat_template = named or None
        return template.text

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """Fill the template, or the chat's own one where the base has none. Raises TemplateError.

        A reply has a thought's marks where the prompt for it opens one and the template shows none.
        """
        return self.thoughts.render(messages, add_generation_prompt)

    def _fill(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        template, told = self.template or FALLBACK_TEMPLATE, {"bos": bos, "eos": eos, "now": self.rendered}
        return render(template, messages, add_generation_prompt=add_generation_prompt, **told)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    @property
    def chat_template(self) -> ChatTemplate:
        """The template, with those that have a name of their own."""
        given = self.tokenizer.chat_template
        named = given.items() if isinstance(given, dict) else ()
        others = {name: text for name, text in named if name != DEFAULT}
        return ChatTemplate(self.template, None, others)

    @property
    def rendered_with(self) -> Rendered:
        """The content of what decides which ids a chat becomes."""
        source, revision = self._source
        quiet = dict.fromkeys(_QUIETLY, False)
        found = [
            cached_file(source, name, revision=revision, local_files_only=True, **quiet)
            for name in VOCABULARY
        ]
        return rendered_with(self.template, [Path(path) for path in found if path])

    def _tokenize(self, text: str, special: bool) -> list[int]:
        self._backend.encode_special_tokens = not special
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        self._backend.encode_special_tokens = False
        return ids

    def _stop_ids(self, folder: str | Path, revision: str | None, special: dict[int, str]) -> frozenset[int]:
        ids = {self.tokenizer.eos_token_id, self._end_of_turn(special)}
        try:
            config = GenerationConfig.from_pretrained(folder, revision=revision or "main")
        except OSError:  # a base without one
            return frozenset(ids - {None})
        eos = config.eos_token_id
        return frozenset((ids | set(eos if isinstance(eos, list) else [eos])) - {None})

    def _end_of_turn(self, special: dict[int, str]) -> int | None:
        """The first special token that the template writes after a reply."""
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARK}]
        after = self._tokenize(self.render(turns, False).partition(_MARK)[2], True)
        return next((i for i in after if i in special), None)

    def _pad_id(self, special: dict[int, str]) -> int | None:
        own = [self.tokenizer.pad_token_id, self.tokenizer.unk_token_id, *sorted(special, reverse=True)]
        free = (i for i in own if i is not None and i not in self.stop_ids and i != self.bos_id)
        return next(free, None)


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers puts a BOS before any text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]


def flat_numbers(values: Iterable[Any]) -> list[int]:
    """The numbers among ids and lists of them, each once: `eos_token_id` may be either, or missing."""
    flat = [i for value in values for i in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(i for i in flat if isinstance(i, int)))
