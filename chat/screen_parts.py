"""What the page is made of apart from its wiring: texts and small pieces of HTML. Knows no engine."""

from __future__ import annotations

from html import escape
from typing import Any

from chat.conversation import Conversation, split_thinking
from chat.engine import PENALTY_SCOPE, Stats
from chat.machine import human_size
from chat.turn import Progress

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
PENALTY_INFO = f"1.0 is off. Counts {PENALTY_SCOPE}; the same on both engines."

# Files are made in the browser from what the page already holds: nothing is written on the server.
SAVE_JS = """(text, name, type) => {
  const a = document.createElement('a');
  a.href = URL.createObjectURL(new Blob([text], {type}));
  a.download = name;
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 1000);
}"""
THEME_JS = "() => { document.body.classList.toggle('dark'); }"
# Settings stand open beside the chat where there is room for both, and behind their arrow on a phone.
OPEN_SETTINGS_JS = """() => {
  if (window.innerWidth > 1000) document.querySelector('.sidebar:not(.open) .toggle-button')?.click();
}"""


def text_part(text: str) -> list[dict[str, str]]:
    """A message's content for the chatbot; a bare string would lose its indentation."""
    return [{"type": "text", "text": text}]


def display(conversation: Conversation) -> tuple[list[dict[str, Any]], list[int]]:
    """The messages as the chatbot shows them, and for each of them its index in the conversation.

    Thinking folds away; a note stands where the model's view of the chat begins.
    """
    shown: list[dict[str, Any]] = []
    origin: list[int] = []

    def show(index: int, role: str, text: str, metadata: dict[str, Any] | None = None) -> None:
        shown.append({"role": role, "content": text_part(text), "metadata": metadata or {}})
        origin.append(index)

    for index, message in enumerate(conversation.messages):
        if index and index == conversation.left_out:
            note = "The messages above are out of the context: the model no longer sees them."
            show(index - 1, "assistant", note, {"title": f"✂ {index} messages left out", "status": "done"})
        thinking, answer, ended = ("", message.content, True)
        if message.role == "assistant":
            thinking, answer, ended = split_thinking(message.content)
        if thinking or not ended:
            title = "Thought" if ended else "Thinking…"
            show(
                index,
                "assistant",
                thinking or "…",
                {"title": title, "status": "done" if ended else "pending"},
            )
        if answer or ended:
            show(index, message.role, answer)
    return shown, origin


def progress_html(progress: Progress) -> str:
    """What the engine is doing: waiting, reading the prompt (in per cent), or writing."""
    if not progress.prompt_tokens:
        return note_html("Waiting for the model…")
    if not progress.generated_tokens:
        share = min(100, 100 * progress.prompt_done // progress.prompt_tokens)
        label = f"Reading the prompt: {share} % of {progress.prompt_tokens:,} tokens"
        return f'<p role="status">{label}</p><div class="bar"><i style="width:{share}%"></i></div>'
    return f"<p>Writing… {progress.generated_tokens:,} tokens</p>"


def stats_html(stats: Stats) -> str:
    """What one reply cost."""
    evaluated = stats.prompt_tokens - stats.cached_tokens
    ended = {"stop": "", "length": " · cut at the length limit", "cancelled": " · stopped"}.get(
        stats.finish_reason, ""
    )
    parts = [
        f"first token after {stats.first_token_s:.2f} s" if stats.first_token_s else "no reply yet",
        f"prompt {evaluated:,} tokens at {stats.prompt_per_s:,.0f} tokens/s" if stats.prompt_per_s else "",
        f"{stats.cached_tokens:,} from the cache",
        f"reply {stats.generated_tokens:,} tokens at {stats.generated_per_s:,.1f} tokens/s"
        if stats.generated_per_s
        else f"reply {stats.generated_tokens:,} tokens",
        f"seed {stats.seed}",
    ]
    return f'<p role="status">{" · ".join(p for p in parts if p)}{ended}</p>'


def error_html(message: str) -> str:
    return f'<p role="alert" class="error">{escape(message)}</p>'


def note_html(message: str) -> str:
    return f'<p role="status">{escape(message)}</p>' if message else ""


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
