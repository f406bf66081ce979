"""The page: a chat, its settings, and the wires between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from chat import page_html as parts
from chat import space
from chat.address import bare, bracketed, opens_at, without_proxies
from chat.connections import bound
from chat.events import Handlers, add_api
from chat.gradio_import import gr, loops_closed
from chat.guard import Guard, names_of
from chat.model_host import Host
from chat.openai_api import Api
from chat.openai_keys import Keys
from chat.page import SAMPLING_KEYS, Page
from chat.reply import Sessions
from chat.runs_page import add_runs_page
from chat.turn_queue import QUEUE_SIZE

QUEUE_PAUSE_S = 0.02
THREADS = QUEUE_SIZE + 64  # each turn in line has one, those that run, and whatever else is pressed

GREY = "*neutral_500"  # Gradio's own is too pale to read


@loops_closed()
def build_demo(sessions: Sessions) -> gr.Blocks:
    """Build the page. Loads no model."""
    page = Page(sessions.host)
    demo = gr.Blocks(title=parts.TITLE, fill_height=True, analytics_enabled=False)
    with demo:
        # A fixed secret: a drawn one would make every chat unreadable when the app restarts.
        page.store = gr.BrowserState(None, storage_key="tune2chat", secret="tune2chat")
        _settings(page, sessions.host)
        _talk(page, sessions.host)
        on = Handlers(sessions, page)
        _actions(page, on)
        _wire(demo, page, on)
        add_api(sessions)
    add_runs_page(demo, sessions.host.registry)
    demo.queue(default_concurrency_limit=None)  # chat/turn_queue.py has the limits: Gradio's knows no users
    # Gradio looks at its queue 1,000 times a second (gradio/queueing.py): 7 % of a core that decodes.
    demo._queue.sleep_when_free = QUEUE_PAUSE_S
    demo._queue.progress_update_sleep_when_free = 10 * QUEUE_PAUSE_S  # nothing here uses gr.Progress
    return demo


def _settings(page: Page, host: Host) -> None:
    with gr.Sidebar(label="Settings", open=False, width=320):
        gr.Markdown("# tune2chat", elem_id="title")
        if host.registry.broken:
            with gr.Accordion(f"Left out of the menu: {len(host.registry.broken)}", open=False):
                gr.HTML(parts.broken_html(host.registry.broken), elem_id="broken")
        page.system = gr.Textbox(
            label="System message", lines=2, max_lines=6, placeholder="How the model should behave"
        )
        page.sliders = [
            gr.Slider(1, 4096, 2048, step=1, label="Max tokens", info="Longest reply"),
            gr.Slider(0, 2, 0.7, step=0.05, label="Temperature", info="0 is greedy: always the likeliest"),
            gr.Slider(0.01, 1, 0.95, step=0.01, label="Top-p", info="1 is off"),
            gr.Slider(0, 1000, 40, step=1, label="Top-k", info="0 is off"),
            gr.Slider(0, 1, 0.05, step=0.01, label="Min-p", info="0 is off"),
            gr.Slider(1, 2, 1.1, step=0.01, label="Repetition penalty", info=parts.PENALTY_INFO),
            gr.Number(None, label="Seed", precision=0, info=parts.SEED_INFO),  # Page.apply checks it,
        ]
        assert len(page.sliders) == len(SAMPLING_KEYS)
        gr.Button("Dark / light", size="sm", elem_id="theme").click(None, js=parts.THEME_JS)
        gr.Markdown(f"Engine: {host.engine}\n\n{space.note()}", elem_id="engine")


def _talk(page: Page, host: Host) -> None:
    page.menu = gr.Dropdown(
        host.menu(), value=host.default, label="Model", show_label=False, container=False, elem_id="model"
    )
    page.chatbot = gr.Chatbot(
        elem_id="chat",
        label="Chat",
        show_label=False,
        height="100%",
        editable="user",
        buttons=["copy", "copy_all"],
        latex_delimiters=parts.LATEX,
        examples=[{"text": text} for text in parts.EXAMPLES],
        placeholder=f"Ask something, or pick an example. {space.note()}",
        layout="bubble",
        scale=1,
        feedback_options=None,
    )
    with gr.Row(elem_id="under"):
        page.status = gr.HTML("", elem_id="status", padding=False)
        page.gauge = gr.HTML("", elem_id="gauge", padding=False)
    page.box = gr.Textbox(
        label="Message",
        show_label=False,
        placeholder="Type a message",
        lines=1,
        max_lines=8,
        autofocus=True,
        submit_btn="Send",
        elem_id="box",
    )


def _actions(page: Page, on: Handlers) -> None:
    with gr.Row(elem_id="actions"):
        page.retry = gr.Button("Retry", size="sm")
        page.undo = gr.Button("Undo", size="sm")
        page.clear = gr.Button("New chat", size="sm")
        markdown = gr.Button("Save as Markdown", size="sm")
        as_json = gr.Button("Save as JSON", size="sm")
        page.open = gr.UploadButton("Open JSON", size="sm", type="binary", file_types=[".json"])
        page.extend = gr.Button("Continue", size="sm", visible=False, variant="primary")
    text = gr.Textbox(visible="hidden")
    _save(markdown, on.export_markdown, page.store, text, "chat.md", "text/markdown")
    _save(as_json, on.export_json, page.store, text, "chat.json", "application/json")


def _save(
    button: gr.Button, export: Any, store: gr.BrowserState, text: gr.Textbox, name: str, kind: str
) -> None:
    save = f"(text) => ({parts.SAVE_JS})(text, '{name}', '{kind}')"
    button.click(export, store, text, api_visibility="private").then(None, text, None, js=save)


def _wire(demo: gr.Blocks, page: Page, on: Handlers) -> None:
    chat = [page.store, *page.settings()]
    event: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    turn = event | {"outputs": page.components()}
    page.box.submit(on.send, [page.box, *chat], **turn)
    page.chatbot.example_select(on.example, chat, **turn)
    page.chatbot.edit(on.edit, chat, **turn)
    gr.on([page.chatbot.retry, page.retry.click], on.retry, chat, **turn)
    gr.on([page.chatbot.undo, page.undo.click], on.undo, [page.box, page.store], **turn)
    gr.on([page.chatbot.clear, page.clear.click], on.clear, page.store, **turn)
    page.extend.click(on.extend, chat, **turn)
    page.open.upload(on.open, [page.open, page.store], **turn)
    page.menu.input(on.choose, [page.menu, page.store], **turn)
    page.box.stop(on.stop, queue=False, **event)
    demo.load(on.restore, page.store, **turn).then(None, js=parts.PAGE_JS)
    demo.unload(on.leave)


def launch(
    demo: gr.Blocks,
    sessions: Sessions,
    host: str | None,
    port: int,
    auth: tuple[str, str] | None,
    ready: Callable[[str], None],
) -> None:
    """Serve page and API until Ctrl-C; `ready` is told the address. Raises OSError when the port is taken."""
    theme = gr.themes.Default(primary_hue="indigo", radius_size="lg", font=["system-ui", "sans-serif"])
    # What is on the internet anyway gains nothing from a check of the name that it was asked by.
    guard = (Guard, (names_of(bare(host)),), {"any_host": space.is_one()})  # as Starlette unpacks it
    api = Api(sessions, Keys(bare(host), private=auth is not None))
    with loops_closed(), without_proxies():
        demo.launch(
            server_name=bracketed(bare(host)),
            server_port=port,
            auth=auth,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,  # it would keep a copy of what was written, and the chats are kept already
            app_kwargs={"openapi_url": None, "middleware": [guard], "routes": api.routes()},
            max_threads=THREADS,
            max_file_size="8mb",  # a saved chat; browsers keep 5 MB
            footer_links=["api"],
            theme=theme.set(
                body_text_color_subdued=GREY, block_info_text_color=GREY, input_placeholder_color=GREY
            ),
            css_paths=Path(__file__).with_name("screen.css"),
            head=f"{parts.POLICY}<script>{parts.TABS_JS}</script>",
        )
    bound(demo.server)
    ready(opens_at(bare(host), port))
    with suppress(KeyboardInterrupt):
        while demo.is_running:
            time.sleep(0.1)
    # Gradio's own `block_thread` closes the server only, which then waits for what is open.
    api.close()
    demo.server_app.stop_event.set()
    demo.close(verbose=False)
