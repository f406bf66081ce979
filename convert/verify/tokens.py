"""Check 2: text becomes the same token ids in training, in the checkpoint's tokenizer and in the GGUF's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chat.model import Model
from convert.rows import Row
from convert.verify.check import Check
from convert.verify.thresholds import NASTY_TEXTS
from core.errors import ChatError
from core.gguf_header import read_metadata


@dataclass(frozen=True)
class Tokenized:
    """A text as the checkpoint's own tokenizer reads it: no BOS added, surfaces of special tokens parsed."""

    text: str
    ids: list[int]
    nasty: bool  # from the set of odd strings, not from a real chat
    added: str = ""  # the token that was added to the vocabulary and stands in this text
    special: bool = False  # which nobody can type: where it matters, the template writes it


def check_tokens(model: Model, rows: Sequence[Row], reference: Sequence[Tokenized]) -> list[Check]:
    """Compare the chat's ids for each row's messages with the run's, and both tokenizers on each text."""
    pieces = _pieces(model.file.path)
    plain = [text for text in reference if not text.nasty and not text.added]
    nasty = [text for text in reference if text.nasty]
    added = [text for text in reference if text.added]
    return [
        _rows(model, rows, pieces),
        _texts(model, plain, pieces),
        *_added(model, added, pieces),
        _nasty(model, nasty, pieces),
    ]


def _rows(model: Model, rows: Sequence[Row], pieces: list[bytes]) -> Check:
    """A row may be cut at training's longest sequence, or end before the template's last newline: what is
    there must be what the chat begins with. The prompt of the last reply, which the chat sends, likewise.
    """
    differences = []
    for number, row in enumerate(rows, 1):
        prompt = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
        try:
            whole = model.encoder.encode(row.messages, add_generation_prompt=False)
            asked = model.encoder.encode(prompt, add_generation_prompt=True)
        except ChatError as error:
            differences.append(f"row {number}: {error}")
            continue
        found = difference(whole[: len(row.ids)], row.ids, pieces)
        found = found or difference(asked[: len(row.ids)], row.ids[: len(asked)], pieces)
        if found:
            differences.append(f"row {number}, {found}")
    figure = f"{len(rows) - len(differences)} of {len(rows)} rows equal"
    return Check("trained ids", "fail" if differences else "ok", figure, "; ".join(differences[:1]))


def _texts(model: Model, texts: Sequence[Tokenized], pieces: list[bytes]) -> Check:
    differences = _differences(model, texts, pieces)
    figure = f"{len(texts) - len(differences)} of {len(texts)} texts equal"
    return Check("tokenizer", "fail" if differences else "ok", figure, "; ".join(differences[:1]))


def _added(model: Model, texts: Sequence[Tokenized], pieces: list[bytes]) -> list[Check]:
    """The tokenizer's own added tokens inside of text, with spaces beside them and without.

    A GGUF has no place for `lstrip`, `rstrip`, `single_word` and `normalized`: it takes a token as it stands,
    wherever it stands.
    """
    if not texts:
        return []
    wrong = [text for text in texts if _differences(model, [text], pieces)]
    tokens = dict.fromkeys(text.added for text in texts)
    broken = dict.fromkeys(text.added for text in wrong)
    figure = f"{len(tokens) - len(broken)} of {len(tokens)} equal inside text"
    if not wrong:
        return [Check("added tokens", "ok", figure)]
    typed = [text for text in wrong if not text.special]
    first = (typed or wrong)[0]
    what = _differences(model, [first], pieces)[0]
    why = "which only templates write" if first.special else "which training saw otherwise than the chat does"
    reason = f"{first.added!r}, {why}: {what}"
    return [Check("added tokens", "fail" if typed else "warn", figure, reason)]


def _nasty(model: Model, texts: Sequence[Tokenized], pieces: list[bytes]) -> Check:
    differences = _differences(model, texts, pieces)
    figure = f"{len(texts) - len(differences)} of {len(texts)} texts equal"
    verdict = NASTY_TEXTS.judge(len(differences) / max(1, len(texts)))
    return Check("odd texts", verdict, figure, "; ".join(differences[:1]))


def _differences(model: Model, texts: Sequence[Tokenized], pieces: list[bytes]) -> list[str]:
    found = []
    for text in texts:
        ids = list(model.encoder.tokenize(text.text, True)) if text.text else []
        if different := difference(ids, text.ids, pieces):
            found.append(f"{text.text[:30]!r}, {different}")
    return found


def difference(ours: Sequence[int], theirs: Sequence[int], pieces: Sequence[bytes]) -> str:
    """Say where two lists of ids part, and both tokens there; empty when they are equal."""
    if list(ours) == list(theirs):
        return ""
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )

    def token(ids: Sequence[int]) -> str:
        if at >= len(ids):
            return "the end"
        known = 0 <= ids[at] < len(pieces)
        return f"{ids[at]} {pieces[ids[at]].decode('utf-8', 'replace')!r}" if known else str(ids[at])

    return f"position {at}: {token(ours)} here, {token(theirs)} expected"


def _pieces(path: Path) -> list[bytes]:
    """The vocabulary's entries, by id."""
    tokens = read_metadata(path)["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)  # read_gguf has refused anything else
    return tokens
