"""What the page is made of apart from its wiring: texts and small pieces of HTML. Knows no engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from chat.context import TurnState
from chat.conversation import Conversation
from core.engine import PENALTY_SCOPE, Stats
from core.machine import human_size

TITLE = "tune2chat"
EXAMPLES = [
    "Explain in two sentences what fine-tuning a language model means.",
    "Write a Python function that reverses a string, and show how to call it.",
    "Give me three ideas for a rainy Sunday.",
]
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "\\[", "right": "\\]", "display": True},
]
PENALTY_INFO = f"1.0 is off. Counts {PENALTY_SCOPE}, on both engines here."
SEED_INFO = "Empty: a new one each time, shown below the reply"

# Files are made in the browser from what the page already holds: nothing is written on the server.
SAVE_JS = """(text, name, type) => {
  const a = document.createElement('a');
  a.href = URL.createObjectURL(new Blob([text], {type}));
  a.download = name;
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 1000);
}"""
THEME_JS = """() => {
  localStorage.setItem('tune2chat-theme', document.body.classList.toggle('dark') ? 'dark' : 'light');
}"""
PAGE_JS = Path(__file__).with_name("screen.js").read_text()
# What a text in a chat must not do, should it get past `literal` and Gradio's sanitiser: have the browser ask
# another site for anything, whose address would carry what was said.
POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; "
    "frame-src 'none'; object-src 'none'; form-action 'none'; base-uri 'self'\">"
)
TABS_JS = Path(__file__).with_name("screen_tabs.js").read_text()


def text_part(text: str) -> list[dict[str, str]]:
    """A message's content for the chatbot; a bare string would lose its indentation."""
    return [{"type": "text", "text": text}]


def display(conversation: Conversation, writing: bool = False) -> tuple[list[dict[str, Any]], list[int]]:
    """The messages as the chatbot shows them, and for each of them its index in the conversation.

    Thoughts fold away; a note stands where the model's view of the chat begins. `writing`: the last reply
    is being written.
    """
    shown: list[dict[str, Any]] = []
    origin: list[int] = []

    def show(index: int, role: str, text: str, metadata: dict[str, Any] | None = None) -> None:
        shown.append({"role": role, "content": text_part(literal(text)), "metadata": metadata or {}})
        origin.append(index)

    if conversation.dropped:
        note = "The browser has no room for longer chats: the oldest messages went first."
        show(0, "assistant", note, {"title": f"✂ {conversation.dropped} messages dropped", "status": "done"})
    for index, message in enumerate(conversation.messages):
        if index and index == conversation.left_out:
            note = "The messages above are out of the context: the model no longer sees them."
            show(index - 1, "assistant", note, {"title": f"✂ {index} messages left out", "status": "done"})
        thought, answer, thinking = message.reply()
        if thought or thinking:
            goes_on = thinking and writing and index == len(conversation.messages) - 1
            title = "Thinking…" if goes_on else "Thought, cut short" if thinking else "Thought"
            status = {"title": title, "status": "pending" if goes_on else "done"}
            show(index, "assistant", thought or "…", status)
        if answer or not (thought or thinking):
            show(index, message.role, answer)
    return shown, origin


def progress_html(progress: TurnState) -> str:
    """What the engine is doing: waiting, reading the prompt (in per cent), or writing.

    Hidden from screen readers but for the first: they would read each of the updates.
    """
    if not progress.prompt_tokens:
        if not (waiting := progress.waiting):
            return note_html("Waiting for the model…")
        place = f"place {waiting.place} of {waiting.of}"
        return note_html(f"Waiting for the model: {place} in line. {sentence(waiting.reason)}")
    if not progress.generated_tokens:
        share = min(100, 100 * progress.prompt_done // progress.prompt_tokens)
        label = f"Reading the prompt: {share} % of {progress.prompt_tokens:,} tokens"
        bar = f'<div class="bar"><i style="width:{share}%"></i></div>'
        return f'<div aria-hidden="true"><p>{label}</p>{bar}</div>'
    return f'<p aria-hidden="true">Writing… {count(progress.generated_tokens)}</p>'


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def count(tokens: int) -> str:
    return f"{tokens:,} token{'' if tokens == 1 else 's'}"


def stats_html(stats: Stats) -> str:
    """What one reply cost."""
    ended = {"length": "Cut at the length limit", "cancelled": "Stopped"}.get(stats.finish_reason, "")
    reply = count(stats.generated_tokens)
    reply += f" at {stats.generated_per_s:,.1f}/s" if stats.generated_per_s else ""
    prompt = f"prompt {count(stats.prompt_tokens)}, {stats.cached_tokens:,} cached"
    prompt += f", read at {stats.prompt_per_s:,.0f}/s" if stats.prompt_per_s else ""
    first = f"first after {stats.first_token_s:.2f} s" if stats.first_token_s else ""
    note = note_html(" · ".join(filter(None, [ended, reply, first, prompt, f"seed {stats.seed}"])))
    return (error_html(stats.fault) if stats.fault else "") + note


def refusal(error: ValidationError) -> str:
    """A sentence about the first value that is out of its range."""
    wrong = error.errors()[0]
    name = ".".join(str(part) for part in wrong["loc"]).replace("_", " ")
    return f"{name} is {wrong['input']!r}: {wrong['msg'][:1].lower()}{wrong['msg'][1:]}."


def error_html(message: str) -> str:
    return f'<p role="alert" class="error">{escape(message)}</p>'


def note_html(message: str) -> str:
    return f"<p>{escape(message)}</p>" if message else ""


def download_html(name: str, done: int, total: int | None) -> str:
    """How far a download is."""
    if not total:
        return note_html(f"Downloading {name}: {human_size(done)}")
    share = 100 * done // total
    label = f"Downloading {name}: {human_size(done)} of {human_size(total)} ({share} %)"
    return note_html(label) + f'<div class="bar"><i style="width:{share}%"></i></div>'


def broken_html(broken: dict[str, str]) -> str:
    """The entries of models.json that are not in the menu, with the reason."""
    return "".join(f"<p><b>{escape(name)}</b>: {escape(reason)}</p>" for name, reason in broken.items())


def gauge_html(tokens: int, n_ctx: int) -> str:
    """How full the context is."""
    share = min(100, round(100 * tokens / n_ctx))
    level = "full" if share >= 90 else "high" if share >= 75 else ""
    label = f"Context: {tokens:,} of {n_ctx:,} tokens ({share} %)"
    return (
        f'<p>{label}</p><div class="bar {level}" role="meter" aria-label="Context used" aria-valuemin="0" '
        f'aria-valuemax="{n_ctx}" aria-valuenow="{tokens}"><i style="width:{share}%"></i></div>'
    )


# An invisible character that joins words: after it, `<` and `&` begin nothing for the Markdown renderer.
# Entities would do the same, but would be there when a message is copied or edited.
JOINER = "\u2060"

# HTML but for addresses, entities, images, definitions of links (a title may go on over lines that look like
# a fence), and the language whose blocks become diagrams, with images.
_MARKUP = re.compile(
    r"<(?=[A-Za-z/!?])(?!https?://[^\s`<>]+>)|&(?=#?\w+;)|!(?=\[)|(?<=\])(?=:)|(?<=```|~~~)[ \t]*mermaid",
    re.I,
)
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
# With one of these in a line, renderers differ on what is code: escapes, formulas, cells, addresses.
_NO_SPAN = re.compile(r"[\\$|]|\]\(|://|www\.", re.IGNORECASE)
_TICKS = re.compile(r"`+")


@lru_cache(maxsize=512)  # a page update shows every message again
def literal(text: str) -> str:
    """`text` for the chatbot, so that HTML in it is seen as it was typed, and images as links. Code is shown
    as it is anyway."""
    parts, end = [], 0
    for start, stop in _code(text):
        parts += [_MARKUP.sub(_joined, text[end:start]), text[start:stop]]
        end = stop
    return "".join([*parts, _MARKUP.sub(_joined, text[end:])])


def typed(text: str) -> str:
    """What somebody meant who edited a text that `literal` had made."""
    return text.replace(JOINER, "")


def _joined(markup: re.Match[str]) -> str:
    return markup[0] + JOINER


def _code(text: str) -> Iterator[tuple[int, int]]:
    """Where code begins and ends: fenced blocks, an open one to the end of the text, and spans in backticks.

    Reads the text once, whatever is in it: a pattern that looks for the end of each span can take minutes.
    """
    fence, began, prose = "", 0, 0
    position = 0
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if not fence and mark:
            yield from _spans(text, prose, position)
            fence, began = mark[1], position + len(line)  # its language is no code
        elif fence and mark and mark[1].startswith(fence) and line.strip() == mark[1]:
            prose = position + len(line)
            yield began, prose
            fence = ""
        position += len(line)
    if fence:
        yield began, len(text)
    else:
        yield from _spans(text, prose, len(text))


def _spans(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Spans of code in backticks, each within its line: further on, a list or a formula may begin."""
    for line in text[start:stop].splitlines(keepends=True):
        if not _NO_SPAN.search(line):
            yield from _spans_of_line(text, start, start + len(line))
        start += len(line)


def _spans_of_line(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Each ends at the next run of as many backticks as it began with."""
    runs = [match.span() for match in _TICKS.finditer(text, start, stop)]
    later: dict[int, int] = {}  # length of a run -> the nearest one to the right
    closing = [0] * len(runs)
    for index in range(len(runs) - 1, -1, -1):
        length = runs[index][1] - runs[index][0]
        closing[index] = later.get(length, 0)
        later[length] = index
    index = 0
    while index < len(runs):
        if end := closing[index]:
            yield runs[index][0], runs[end][1]
            index = end
        index += 1
