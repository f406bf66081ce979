"""The page: a chat, its settings, and the wires between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from chat import screen_parts as parts
from chat.screen_api import add_api
from chat.screen_events import SAMPLING_KEYS, Handlers
from chat.session import Sessions

QUEUE_SIZE = 64  # turns that may wait; who comes later is told so
CONCURRENT_TURNS = 16  # in Gradio; how many reach the model at once is the engine's affair


def build_demo(sessions: Sessions) -> gr.Blocks:
    """Build the page. Loads no model."""
    on = Handlers(sessions)
    demo = gr.Blocks(title=parts.TITLE, fill_height=True, analytics_enabled=False)
    with demo:
        # A fixed secret: a drawn one would make every chat unreadable when the app restarts.
        on.store = gr.BrowserState(None, storage_key="tune2chat", secret="tune2chat")
        _settings(on, sessions)
        _talk(on, sessions)
        _actions(on)
        _wire(demo, on)
        add_api(sessions)
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=CONCURRENT_TURNS)
    return demo


def _settings(on: Handlers, sessions: Sessions) -> None:
    host = sessions.host
    with gr.Sidebar(label="Settings", open=False, width=320):
        gr.Markdown("# tune2chat", elem_id="title")
        if host.registry.broken:
            with gr.Accordion(f"{len(host.registry.broken)} left out", open=False):
                gr.HTML(parts.broken_html(host.registry.broken), elem_id="broken")
        on.system = gr.Textbox(
            label="System message", lines=2, max_lines=6, placeholder="How the model should behave"
        )
        on.sliders = [
            gr.Slider(1, 4096, 2048, step=1, label="Max tokens", info="Longest reply"),
            gr.Slider(
                0, 2, 0.7, step=0.05, label="Temperature", info="0 is greedy: always the likeliest token"
            ),
            gr.Slider(0.01, 1, 0.95, step=0.01, label="Top-p"),
            gr.Slider(0, 1000, 40, step=1, label="Top-k", info="0 is off"),
            gr.Slider(0, 1, 0.05, step=0.01, label="Min-p"),
            gr.Slider(1, 2, 1.1, step=0.01, label="Repetition penalty", info=parts.PENALTY_INFO),
            gr.Number(
                None,
                label="Seed",
                precision=0,
                minimum=0,
                info="Empty: a new one each time, shown below the reply",
            ),
        ]
        assert len(on.sliders) == len(SAMPLING_KEYS)
        gr.Markdown(f"Engine: {host.engine}", elem_id="engine")
        gr.Button("Dark / light", size="sm", elem_id="theme").click(None, js=parts.THEME_JS)


def _talk(on: Handlers, sessions: Sessions) -> None:
    host = sessions.host
    on.menu = gr.Dropdown(
        host.menu(),
        value=host.default,
        label="Model",
        info="Size on disk, whether it fits this machine's memory, and where it is",
        elem_id="model",
    )
    on.chatbot = gr.Chatbot(
        elem_id="chat",
        label="Chat",
        show_label=False,
        height="100%",
        editable="user",
        buttons=["copy", "copy_all"],
        latex_delimiters=parts.LATEX,
        examples=[{"text": text} for text in parts.EXAMPLES],
        placeholder="Ask something, or pick an example.",
        layout="bubble",
        scale=1,
        feedback_options=None,
    )
    with gr.Column(elem_id="under", scale=0):
        on.status = gr.HTML("", elem_id="status", padding=False)
        on.gauge = gr.HTML("", elem_id="gauge", padding=False)
    on.box = gr.Textbox(
        label="Message",
        show_label=False,
        placeholder="Type a message; Enter sends, Shift+Enter is a new line",
        lines=1,
        max_lines=8,
        autofocus=True,
        submit_btn=True,
        elem_id="box",
    )


def _actions(on: Handlers) -> None:
    with gr.Row(elem_id="actions"):
        on.extend_button = gr.Button("Continue", size="sm", visible=False, variant="primary")
        retry = gr.Button("Retry", size="sm")
        undo = gr.Button("Undo", size="sm")
        clear = gr.Button("New chat", size="sm")
        markdown = gr.Button("Save as Markdown", size="sm")
        as_json = gr.Button("Save as JSON", size="sm")
    on.buttons = {"retry": retry, "undo": undo, "clear": clear}
    text = gr.Textbox(visible="hidden")
    _save(markdown, on.export_markdown, on.store, text, "chat.md", "text/markdown")
    _save(as_json, on.export_json, on.store, text, "chat.json", "application/json")


def _save(
    button: gr.Button, export: Any, store: gr.BrowserState, text: gr.Textbox, name: str, kind: str
) -> None:
    save = f"(text) => ({parts.SAVE_JS})(text, '{name}', '{kind}')"
    button.click(export, store, text, api_visibility="private").then(None, text, None, js=save)


def _wire(demo: gr.Blocks, on: Handlers) -> None:
    settings = [on.menu, on.system, *on.sliders]
    page = [on.chatbot, on.store, on.box, on.status, on.gauge, on.extend_button, *settings]
    turn: dict[str, Any] = {"outputs": page, "api_visibility": "private", "show_progress": "hidden"}
    on.box.submit(on.send, [on.box, on.store, *settings], **turn)
    on.chatbot.example_select(on.example, [on.store, *settings], **turn)
    on.chatbot.edit(on.edit, [on.store, *settings], **turn)
    gr.on([on.chatbot.retry, on.buttons["retry"].click], on.retry, [on.store, *settings], **turn)
    gr.on([on.chatbot.undo, on.buttons["undo"].click], on.undo, on.store, **turn)
    gr.on([on.chatbot.clear, on.buttons["clear"].click], on.clear, on.store, **turn)
    on.extend_button.click(on.extend, [on.store, *settings], **turn)
    on.menu.input(on.choose, [on.menu, on.store], **turn)
    on.box.stop(on.stop, queue=False, api_visibility="private", show_progress="hidden")
    demo.load(on.restore, on.store, **turn)
    demo.load(None, js=parts.OPEN_SETTINGS_JS)
    demo.unload(on.leave)


def launch(demo: gr.Blocks, host: str | None, port: int, auth: tuple[str, str] | None) -> None:
    """Serve the page until Ctrl-C. Raises OSError when the port is taken."""
    demo.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=False,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="1mb",
        footer_links=["api"],
        theme=gr.themes.Default(primary_hue="indigo", font=["system-ui", "sans-serif"]),
        css_paths=Path(__file__).with_name("screen.css"),
    )
