"""What the page is made of apart from its wiring: texts and small pieces of HTML."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from pydantic import ValidationError

from chat.context import TurnState
from chat.json_tree import json_tree
from chat.markup import literal
from chat.model_host import Host
from chat.tree import Node, Tree
from core.engine import PENALTY_SCOPE, Stats
from core.gguf_reader import model_size
from core.machine import human_size

Shown = dict[str, Any]  # a message as gr.Chatbot takes it

TITLE = "tune2chat"
EXAMPLES = [
    "Explain in two sentences what fine-tuning a language model means.",
    "Write a Python function that reverses a string, and show how to call it.",
    "Give me three ideas for a rainy Sunday.",
]
WINDOW = 40  # messages that are shown at once: an update sends and draws all of them
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "\\[", "right": "\\]", "display": True},
]
PENALTY_INFO = f"1.0 is off. Counts {PENALTY_SCOPE}, on both engines here."
SEED_INFO = "Empty: a new one each time, shown below the reply"

VOTES = {"left": "Left is better", "both": "Both are good", "neither": "Neither", "right": "Right is better"}

# The hidden component through which the page's scripts and the handlers hear of each other.
BUS_JS = "window.tune2chat.attach({ trigger, watch, props });"
MARKS_JS = "watch('value', () => window.tune2chat.mark(props.value));"
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
_SCRIPTS = (
    "kept_in_browser",
    "kept",
    "chat_rows",
    "chat_list",
    "screen_line",
    "screen_chats",
    "screen_pieces",
    "screen_files",
    "screen_marks",
)
HEAD_JS = "\n".join(Path(__file__).with_name(f"{name}.js").read_text() for name in _SCRIPTS)


def act(name: str, **more: str) -> str:
    """A button's script that asks for the action `name` of chat/actions.py."""
    return f"() => window.tune2chat.act({json.dumps(name)}, {json.dumps(more)})"


def text_part(text: str) -> list[Any]:
    """A message's content for the chatbot; a bare string would lose its indentation."""
    return [{"type": "text", "text": literal(text)}]


def display(tree: Tree, window: int = WINDOW, without: Collection[str] = ()) -> tuple[list[Shown], list[str]]:
    """The last `window` messages of the branch as the chatbot shows them, and the id of each.

    Thoughts fold away; a note stands where the model's view of the chat begins. Those in `without` are being
    written, and shown elsewhere.
    """
    branch = tree.branch()
    shown: list[Shown] = []
    origin: list[str] = []
    for place, node in enumerate(branch):
        if place < len(branch) - window or node.id in without:
            continue
        if place and place == tree.chat.left_out:
            note = "The messages above are out of the context: the model no longer sees them."
            title = f"✂ {place} messages left out"
            shown.append(_shown("assistant", text_part(note), title))
            origin.append(branch[place - 1].id)
        messages = message_parts(node, structured=tree.chat.json_schema is not None)
        shown += messages
        origin += [node.id] * len(messages)
    return shown, origin


def message_parts(node: Node, writing: bool = False, structured: bool = False) -> list[Shown]:
    """A message as the chatbot has it: its thought, folded, and what it says.

    `structured`: replies were held to a JSON schema, and are shown as a tree.
    """
    thought, answer, thinking = node.message.reply()
    parts: list[Shown] = []
    if thought or thinking:
        goes_on = thinking and writing
        title = "Thinking…" if goes_on else "Thought, cut short" if thinking else "Thought"
        parts.append(_shown("assistant", text_part(thought or "…"), title, goes_on))
    if answer or not parts:
        as_tree = json_tree(answer) if structured and node.message.role == "assistant" else None
        parts.append(_shown(node.message.role, [as_tree] if as_tree else text_part(answer)))
    return parts


def _shown(role: str, content: list[Any], title: str = "", pending: bool = False) -> Shown:
    folded = {"title": title, "status": "pending" if pending else "done"} if title else {}
    return {"role": role, "content": content, "metadata": folded}


def marks(tree: Tree, shown: Sequence[Shown], origin: Sequence[str]) -> list[dict[str, Any]]:
    """For each row of the chatbot, which joins messages of one side: the id of its last message, the ids of
    those that stand beside it in the tree, itself among them, and what somebody thinks of a reply.

    The page's script puts what can be done with them into the row's toolbar, where no text of a chat comes.
    """
    children, rows = tree.children(), list[dict[str, Any]]()
    for place, (message, name) in enumerate(zip(shown, origin, strict=True)):
        if not place or shown[place - 1]["role"] != message["role"]:
            rows.append({})
        node = tree.nodes[name]
        vote = node.vote if node.message.role == "assistant" else None
        rows[-1] = {"id": name, "versions": children[node.parent], "vote": vote}
    return rows


def arm_name(node: Node) -> str:
    """Who wrote a reply: the model, and the adapters that it had."""
    on = [f"{name} {strength:g}" for name, strength in node.adapters.items() if strength]
    off = ["no adapter"] if node.adapters and not on else []
    return ", ".join([node.model, *on, *off])


def pair_names(tree: Tree, pair: Sequence[Node]) -> list[str]:
    """What stands above two replies that wait for a vote: whose they are, if it isn't to be told after it."""
    blind = tree.chat.compared is not None and tree.chat.compared.blind
    return ["A", "B"][: len(pair)] if blind else [arm_name(node) for node in pair]


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


def ended_html(stats: Sequence[Stats], blind: bool) -> str:
    """What replies cost; of two that are judged blind their speeds would tell which is which."""
    if not blind:
        return "".join(map(stats_html, stats))
    faults = "".join(error_html(each.fault) for each in stats if each.fault)
    return faults + note_html("Which reply is better? Whose they are is told after the vote.")


def refusal(error: ValidationError) -> str:
    """A sentence about the first value that is out of its range."""
    wrong = error.errors()[0]
    name = ".".join(str(part) for part in wrong["loc"]).replace("_", " ")
    return f"{name} is {shortened(wrong['input'])}: {wrong['msg'][:1].lower()}{wrong['msg'][1:]}."


def error_html(message: str) -> str:
    return f'<p role="alert" class="error">{escape(message)}</p>'


def note_html(message: str) -> str:
    return f"<p>{escape(message)}</p>" if message else ""


def download_html(name: str, done: int, total: int | None) -> str:
    """How far a download is."""
    if not total:
        return note_html(f"Downloading {name}: {human_size(done)}")
    return _part_html(f"Downloading {name}: {human_size(done)} of {human_size(total)}", done, total)


def reading_html(count: int, done: int, total: int) -> str:
    """How far a file of chats is read."""
    label = f"{count:,} chats so far; {human_size(done)} of {human_size(total)} read"
    return _part_html(label, min(done, total or 1), total or 1)


def _part_html(label: str, done: int, total: int) -> str:
    """The label with the share that is done, and a bar."""
    share = 100 * done // total
    return note_html(f"{label} ({share} %)") + f'<div class="bar"><i style="width:{share}%"></i></div>'


def facts_html(host: Host, name: str) -> str:
    """What is known of a model, in a line: its size, context and base, and what was measured of it."""
    entry = host.registry.entries.get(name)
    if entry is None:
        return ""
    path = host.registry.locate(entry)
    size = model_size(path) if path else entry.size_bytes
    facts = [human_size(size)] if size else []
    facts += [f"context {entry.n_ctx:,}"]
    facts += [entry.quant] if entry.quant else []
    facts += [f"from {entry.base}"] if entry.base else []
    facts += [f"{key.replace('_', ' ')} {value}" for key, value in entry.quality.items() if value is not None]
    return note_html(" · ".join([*facts, host.engine]))


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
