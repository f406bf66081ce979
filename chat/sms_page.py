"""The page /sms: what is in a marketing message, how likely it sells, and which words moved that."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chat.cards_html import notes, table, text
from chat.gradio_import import gr
from chat.reply import Sessions
from chat.sms import ask_features, likelihood, without_each_word
from core.errors import ChatError
from core.sms import Features, logit, segments
from core.sms_rules import extract, hybrid

PATH = "/sms"
CALIBRATION = Path("outputs") / "studies" / "sms" / "calibration.json"
LONGEST = 1_000  # characters
HEAD = (
    f"<style>{Path(__file__).with_name('runs.css').read_text()}"
    ".gradio-container main.contain:has(.runs) :is(.form, #model) { flex: 0 0 auto !important; }</style>"
    '<header class="runs"><a href="./">← Back to the chat</a><h1>Will this message sell?</h1></header>'
    '<div class="runs"><p>What is known of selling here comes from <b>synthetic</b> messages, made up with '
    "what they sold: nothing below says anything about real campaigns.</p></div>"
)
PAGE_JS = """() => {
  document.title = 'Will this message sell? · tune2chat';
  const theme = localStorage.getItem('tune2chat-theme');
  if (theme) document.body.classList.toggle('dark', theme === 'dark');
}"""
EXAMPLE = "Lumovi: Anna, this is for you. 20% off all running shoes. Today only! Reply STOP to opt out."

Share = Field(ge=0, le=1)


class Calibration(BaseModel):
    """What `studies/sms.py` measured of a model: of its likelihoods, how many messages sold. A bin has their
    mean, the share that sold, and the rows. `slope` and `intercept` are of log-odds (Platt)."""

    model_config = ConfigDict(extra="forbid")

    synthetic: Literal[True]
    model: str
    rows: int = Field(gt=0)
    slope: float = Field(allow_inf_nan=False)
    intercept: float = Field(allow_inf_nan=False)
    bins: list[tuple[float, float, int]] = Field(max_length=20)

    def calibrated(self, probability: float) -> float:
        """The share that sold among messages with this likelihood, by the line (0 to 1)."""
        log_odds = self.intercept + self.slope * logit(probability)
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, log_odds))))


def read_calibration(folder: Path, model: str) -> tuple[Calibration | None, str]:
    """The calibration of `model` that was measured in `folder`, or None and why there is none."""
    command = f"python studies/sms.py --model {shlex.quote(model)}"
    path = folder / CALIBRATION
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return (
            None,
            f"The likelihood isn't calibrated: nothing was measured here yet. To measure: {command}",
        )
    except (OSError, ValidationError):
        return None, f"{CALIBRATION} can't be read. Move it away, and measure again: {command}"
    if found.model != model:
        return None, f"What was measured is the calibration of {found.model}, not of {model}."
    return found, ""


def add_sms_page(demo: gr.Blocks, sessions: Sessions) -> None:
    """Add the page to the app `demo`, outside of its own `with`."""
    menu = sessions.host.menu()

    def judge(message: str, model: str, key: str) -> Iterator[Any]:
        yield from ((html, key) for html in judged(sessions, message or "", model or "", key))

    def stop(key: str) -> None:
        sessions.stop(key)

    no_bar: Any = {"visible": "hidden"}
    with demo.route("Will this message sell?", PATH, show_in_navbar=False):
        gr.components.Navbar(**no_bar)
        gr.HTML(HEAD, js_on_load=None, apply_default_css=False)
        message = gr.Textbox(EXAMPLE, label="Message", lines=3, max_length=LONGEST, elem_id="message")
        model = gr.Dropdown(menu, value=sessions.host.default or None, label="Model", elem_id="model")
        with gr.Row():
            ask = gr.Button("Judge", variant="primary", elem_id="judge")
            halt = gr.Button("Stop", elem_id="stop")
        shown = gr.HTML("", elem_id="judged", js_on_load=None, apply_default_css=False)
        key = gr.State(lambda: uuid4().hex)
        demo.load(None, None, None, js=PAGE_JS)
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        ask.click(judge, [message, model, key], [shown, key], concurrency_limit=None, **quiet)
        halt.click(stop, key, None, **quiet)
    demo.current_page = ""  # or what is added later would be this page's


def judged(sessions: Sessions, message: str, model: str, key: str) -> Iterator[str]:
    """The result as it grows: features, likelihood, and the words one by one."""
    message = message.strip()
    if not message or len(message) > LONGEST:
        yield _box(notes([f"Write a message of 1 to {LONGEST:,} characters; this has {len(message):,}."]))
        return
    found, unsure = extract(message)
    features = _features(message, found, dict.fromkeys(unsure, "unsure"))
    yield _box(features + "<p>Asking the model…</p>")
    likely = ""
    try:
        whole = likelihood(sessions, model, message, key)
        likely = _likelihood(whole, *read_calibration(sessions.host.registry.folder, model))
        if unsure:
            yield _box(features + likely + "<p>Asking the model of what the rules are unsure…</p>")
            features = _read(sessions, message, model, key, found, unsure)
        yield _box(features + likely + "<p>Leaving out the words, one by one…</p>")
        words: list[tuple[str, float]] = []
        for word in without_each_word(sessions, model, message, whole, key):
            words.append(word)
            yield _box(features + likely + _words(words, "so far"))
        yield _box(features + likely + _words(words, "all of them"))
    except ChatError as error:
        yield _box(features + likely + notes([str(error)]))


def _box(html: str) -> str:
    return f'<div class="runs">{html}</div>'


def _features(message: str, found: Features, said_of: dict[str, str]) -> str:
    """The table of them; `said_of` some is how far they are to be trusted."""
    rows = [("characters", f"{len(message):,}", ""), ("SMS that it is sent as", f"{segments(message):,}", "")]
    for name, value in found:
        said = ("yes" if value else "no") if isinstance(value, bool) else str(value).replace("_", " ")
        rows.append((name.replace("_", " "), text(said), said_of.get(name, "")))
    return table("Features, by rules", ("", "", ""), rows)


def _read(
    sessions: Sessions, message: str, model: str, key: str, found: Features, unsure: Collection[str]
) -> str:
    """The features, with what the model says of those of which the rules are unsure. Raises ChatError."""
    reply = ask_features(sessions, model, message, key)
    said = "the model's word, as the rules are unsure" if reply.features else "unsure"
    shown = _features(message, hybrid(found, unsure, reply.features), dict.fromkeys(unsure, said))
    fault = f"The model couldn't say of what the rules are unsure: {reply.fault}."
    return shown if reply.features else shown + notes([fault])


def _likelihood(probability: float, found: Calibration | None, why: str) -> str:
    rows = [("as the model says it", f"{probability:.1%}")]
    if not found:
        return table("Likelihood of a purchase", ("", ""), rows) + notes([why])
    rows.append(("calibrated", f"{found.calibrated(probability):.1%}"))
    bins = [(f"{said:.0%}", f"{was:.0%}", str(count)) for said, was, count in found.bins]
    heads = ("the model said, on average", "of those sold", "messages")
    return table("Likelihood of a purchase", ("", ""), rows) + table(
        f"Calibration, on {found.rows} synthetic messages", heads, bins
    )


def _words(found: list[tuple[str, float]], how_many: str) -> str:
    rows = [(f"<bdi>{text(word, 60)}</bdi>", f"{change:+.2f}") for word, change in found]
    return table(f"What each word adds to the log-odds of a purchase, {how_many}", ("word", "adds"), rows)
