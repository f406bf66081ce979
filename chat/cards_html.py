"""Pieces of HTML for texts that nobody has checked: escaped, bounded and without control characters."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

LONGEST = 300  # characters of a name or a sentence

# Control characters, halves of characters that UTF-8 can't write, and what turns a text's direction round.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def text(value: str, most: int = LONGEST) -> str:
    """`value` as HTML that shows it, shortened to `most` characters."""
    short = value if len(value) <= most else value[: most - 1] + "…"
    return escape(_UNSEEN.sub("\ufffd", short))


def name(value: str) -> str:
    """A name in a line of ours, whose direction it doesn't change."""
    return f"<bdi>{text(' '.join(value.split()))}</bdi>"


def number(value: float | None) -> str:
    """A figure with four digits, empty for none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if isinstance(value, int) or 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML, the first of a row being its name; nothing where there are no rows."""
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    heads = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in head)
    top = f"<thead><tr>{heads}</tr></thead>" if any(head) else ""
    whole = f"<table><caption>{caption}</caption>{top}<tbody>{body}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="group" aria-label="{caption}">{whole}</div>' if body else ""


def notes(sentences: Sequence[str]) -> str:
    """What couldn't be read, a line each."""
    return "".join(f'<p class="note">{text(sentence)}</p>' for sentence in sentences[:20])


def badge(kind: str, words: str) -> str:
    """A state in a few words, with its colour."""
    return f'<span class="badge {kind}">{text(words)}</span>'


def card(head: str, body: str, folded: bool | None = None, part: str = "") -> str:
    """A card that folds, or one that doesn't (None)."""
    anchor = f' id="{part}"' if part else ""
    if folded is None:
        return f'<section class="card"{anchor}><div class="head">{head}</div>{body}</section>'
    state = "" if folded else " open"
    return f'<details class="card"{anchor}{state}><summary class="head">{head}</summary>{body}</details>'


def fold(title: str, body: str) -> str:
    """What is of less interest."""
    return f'<details class="fold"><summary>{title}</summary>{body}</details>' if body else ""


def command(line: str) -> str:
    """A command to be pasted."""
    return f'<pre class="command">{text(line, 2_000)}</pre>'


def query(**values: str) -> str:
    """The query of an address; a name that isn't UTF-8 keeps its bytes."""
    return "&".join(
        f"{key}={quote(value, safe='', errors='surrogateescape')}" for key, value in values.items()
    )


def link(address: str, words: str, kind: str = "") -> str:
    """A link; `words` are HTML. `address` is relative to the folder of the page, which is Gradio's base."""
    return f'<a class="{kind}" href="{escape(address)}">{words}</a>'


def when(seconds: float) -> str:
    """A time of this machine, in minutes."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""
    except (OverflowError, ValueError, OSError):
        return ""
