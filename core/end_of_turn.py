"""How a model's own template ends a reply: a file may not say so, and then the model speaks for the user.

llama.cpp stops at the file's eos, eot and eom tokens and at those whose names it knows. A file with a wrong
eos, or a mark of its own, lacks the one that its template writes after each reply, and that is found here by
rendering one. llama.cpp is then told of the token; a mark that is no token ends the reply as a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from core.errors import TemplateError
from core.gguf_vocab import Vocab
from core.template import Messages

_USER, _REPLY, _AGAIN = "zaskz", "zreplyz", "zagainz"
_MARK = re.compile(r"[<\[]\|?[^\s<>\[\]]{1,40}\|?[>\]]")
# Keys by which a file names tokens that end a reply in llama.cpp; few files name them all.
END_KEYS = tuple(
    f"tokenizer.ggml.{kind}_token_id" for kind in ("eot", "eom", "fim_sep", "fim_rep", "fim_pad")
)
_SHORTEST = 2  # letters of a heading that may end a reply


@dataclass(frozen=True)
class EndOfTurn:
    """What ends a reply beside the file's own tokens: a token, or a text, or nothing more."""

    token: int | None = None
    text: str = ""

    def overrides(self, keys: Collection[str]) -> dict[str, int]:
        """What llama.cpp is told of the token, as a key that is not among the file's `keys`."""
        free = (key for key in END_KEYS if key not in keys)
        return {} if self.token is None else {next(free, END_KEYS[0]): self.token}


def end_of_turn(render: Callable[[Messages, bool], str], vocab: Vocab) -> EndOfTurn:
    """Look at what the template `render(messages, add_generation_prompt)` writes after a reply.

    The last reply counts, where the template ends it: gpt-oss ends earlier ones with the token that also ends
    a thought, and only the last with the one that ends a reply.
    """
    chat = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}]
    try:
        last = render(chat, False).partition(_REPLY)[2]
        earlier = render([*chat, {"role": "user", "content": _AGAIN}], False).partition(_REPLY)[2]
    except TemplateError:  # the chat itself will show it
        return EndOfTurn()
    between = earlier.partition(_AGAIN)[0]
    for after in (last, between):
        surface, at = _first(after, vocab)
        mark = _MARK.search(after[:at])
        if mark:
            return EndOfTurn(text=mark[0])
        if surface:
            token = vocab.control[surface]
            return EndOfTurn() if token in vocab.eog_ids else EndOfTurn(token)
    heading = next((line.strip() for line in between.splitlines() if line.strip()), "")
    if _AGAIN not in earlier or len(heading) < _SHORTEST:
        return EndOfTurn()
    return EndOfTurn(text=f"\n{heading}" if between.lstrip(" ").startswith("\n") else heading)


def _first(text: str, vocab: Vocab) -> tuple[str, int]:
    """Return the control token that comes first in `text`, the longest one there, and where it begins."""
    places = [(text.index(surface), -len(surface), surface) for surface in vocab.control if surface in text]
    if not places:
        return "", len(text)
    at, _, surface = min(places)
    return surface, at
