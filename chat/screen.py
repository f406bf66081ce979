"""The page: chats on the left, settings on the right, the open one between them; and how it is served."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from chat import page_html as parts
from chat import space
from chat.actions import EXPORTS, Actions
from chat.address import bare, bracketed, opens_at, without_proxies
from chat.connections import bound
from chat.events import Handlers
from chat.gradio_api import add_api
from chat.gradio_import import gr, loops_closed
from chat.guard import Guard, names_of
from chat.kept import Kept
from chat.kept_routes import KeptRoutes
from chat.model_host import Host
from chat.openai_api import Api
from chat.openai_keys import Keys
from chat.owner import is_visitor, owner_of, signs_in
from chat.page import OWN, SAMPLING_KEYS, Page
from chat.reply import Sessions
from chat.runs_page import add_runs_page
from chat.sms_page import add_sms_page
from chat.turn_queue import QUEUE_SIZE
from chat.turns import Turns

QUEUE_PAUSE_S = 0.02
THREADS = QUEUE_SIZE + 64  # each turn in line has one, those that run, and whatever else is pressed

GREY = "*neutral_500"  # Gradio's own is too pale to read


@loops_closed()
def build_demo(sessions: Sessions, kept: Kept | None = None, titles: bool = False) -> gr.Blocks:
    """Build the page. Loads no model.

    `kept` has the chats of people who sign in. With `titles`, models give chats theirs.
    """
    page = Page(sessions.host)
    demo = gr.Blocks(title=parts.TITLE, fill_height=True, analytics_enabled=False)
    with demo:
        page.bus = gr.HTML(None, html_template="", js_on_load=parts.BUS_JS, visible="hidden", elem_id="bus")
        page.marks = gr.HTML(None, html_template="", js_on_load=parts.MARKS_JS, visible="hidden")
        page.open = gr.Textbox(visible="hidden", elem_id="open")
        _chats()
        _settings(page, sessions.host)
        _talk(page, sessions.host)
        turns = Turns(sessions, lambda owner, tree, nodes: _put(kept, owner, tree, nodes))
        on = Handlers(sessions, page, turns, owner_of, kept, titles)
        _wire(demo, page, on, Actions(on, kept))
        add_api(sessions)
    add_runs_page(demo, sessions.host.registry)
    add_sms_page(demo, sessions)
    demo.queue(default_concurrency_limit=None)  # chat/turn_queue.py has the limits: Gradio's knows no users
    # Gradio looks at its queue 1,000 times a second (gradio/queueing.py): 7 % of a core that decodes.
    demo._queue.sleep_when_free = QUEUE_PAUSE_S
    demo._queue.progress_update_sleep_when_free = 10 * QUEUE_PAUSE_S  # nothing here uses gr.Progress
    demo._queue.ANALYTICS_MAX_EVENTS = 0  # monitoring is off, and each event would cost a table of all
    return demo


def _put(kept: Kept | None, owner: str, tree: Any, nodes: Any) -> None:
    if kept and not is_visitor(owner):
        kept.put(owner, tree.chat, nodes)


def _chats() -> None:
    with gr.Sidebar(label="Chats", open=False, width=290, elem_id="left"):
        gr.HTML("", elem_id="chats", padding=False)  # chat/chat_list.js draws it
        if signs_in():
            gr.LoginButton(size="sm")
            gr.HTML(parts.note_html(space.KEEPS), elem_id="keeps", padding=False)


def _settings(page: Page, host: Host) -> None:
    with gr.Sidebar(label="Settings", open=False, width=320, position="right", elem_id="right"):
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
            gr.Number(None, label="Seed", precision=0, info=parts.SEED_INFO),  # Page.apply checks it
        ]
        assert len(page.sliders) == len(SAMPLING_KEYS)
        page.adapter = gr.Dropdown([OWN], value=OWN, label="Adapter", visible=False)
        page.strength = gr.Slider(0, 2, 1, step=0.05, label="Strength", visible=False)
        with gr.Accordion("Compare two replies", open=False):
            page.compare = gr.Checkbox(False, label="Ask both", info="One question, the same seed")
            page.other = gr.Dropdown([], value=None, label="Compare with")
            page.blind = gr.Checkbox(False, label="Blind", info="Who is who is told after the vote")
        with gr.Accordion("Structured replies", open=False):
            page.json_schema = gr.Textbox(
                label="JSON schema", lines=4, max_lines=12, placeholder='{"type": "object", "properties": …}'
            )
        with gr.Accordion("Save and open", open=False):
            for name in EXPORTS:
                save = f"() => window.tune2chat.saveAs({json.dumps(name)})"
                gr.Button(f"Save as {name}", size="sm").click(None, js=save)
            gr.Button("Open a file", size="sm").click(None, js="() => window.tune2chat.openFile()")
        if host.registry.broken:
            with gr.Accordion(f"Left out of the menu: {len(host.registry.broken)}", open=False):
                gr.HTML(parts.broken_html(host.registry.broken), elem_id="broken")
        gr.HTML(
            '<a href="runs">Runs and files</a> · <a href="sms">Will this message sell?</a>',
            elem_id="runs",
            padding=False,
        )
        gr.Button("Dark / light", size="sm", elem_id="theme").click(None, js=parts.THEME_JS)
        gr.Markdown(f"Engine: {host.engine}\n\n{space.note()}", elem_id="engine")


def _talk(page: Page, host: Host) -> None:
    with gr.Row(elem_id="top"):
        page.menu = gr.Dropdown(
            host.menu(), value=host.default, label="Model", show_label=False, container=False, elem_id="model"
        )
        page.facts = gr.HTML("", elem_id="facts", padding=False)
    with gr.Column(elem_id="talk"):
        page.earlier = gr.Button("Show earlier messages", size="sm", visible=False)
        page.chatbot = _chatbot(
            elem_id="chat",
            editable="all",
            examples=[{"text": text} for text in parts.EXAMPLES],
            placeholder=f"Ask something, or pick an example. {space.note()}",
        )
        with gr.Row(elem_id="live"):
            page.live = _chatbot(visible=False, elem_classes="live")
            page.rival = _chatbot(visible=False, elem_classes="live")
        with gr.Row(visible=False, elem_id="votes") as page.votes:
            for vote, label in parts.VOTES.items():
                gr.Button(label, size="sm").click(None, js=parts.act("vote", vote=vote))
        page.extend = gr.Button("Continue", size="sm", visible=False, elem_id="continue")
    with gr.Row(elem_id="under"):
        page.status = gr.HTML("", elem_id="status", padding=False)
        page.redo = gr.Button("Redo", size="sm", visible=False, elem_id="redo")
        page.gauge = gr.HTML("", elem_id="gauge", padding=False)
    page.box = gr.Textbox(
        label="Message",
        show_label=False,
        placeholder="Type a message, or drop a text file",
        lines=1,
        max_lines=8,
        autofocus=True,
        submit_btn="Send",
        elem_id="box",
    )


def _chatbot(**more: Any) -> gr.Chatbot:
    """All that show messages look alike; #talk scrolls, they don't."""
    return gr.Chatbot(
        label="Chat",
        show_label=False,
        height="auto",
        autoscroll=False,
        buttons=["copy"],
        latex_delimiters=parts.LATEX,
        layout="bubble",
        feedback_options=None,
        **more,
    )


def _wire(demo: gr.Blocks, page: Page, on: Handlers, actions: Actions) -> None:
    settings = page.settings()
    event: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    turn = event | {"outputs": page.components()}
    # While one chat is answered, another may be opened and asked: Gradio would leave those events out.
    several: dict[str, Any] = {"trigger_mode": "multiple"}
    growing = event | several | {"outputs": [page.status, page.live, page.rival, page.bus]}
    begun = [
        page.box.submit(on.send, [page.box, page.compare, page.other, page.blind, *settings], **turn),
        page.chatbot.example_select(on.example, settings, **turn),
        page.chatbot.edit(on.edit, settings, **turn),
        page.chatbot.retry(on.retry, settings, **turn),
        page.extend.click(on.extend, settings, **turn),
        page.bus.click(actions.act, None, **turn, **several),
    ]
    for replies in begun:
        ended = replies.then(on.stream, None, **growing).then(on.finish, None, **turn, **several)
        if on.titles:
            ended.then(on.entitle, None, page.bus, **event, **several)
    page.chatbot.undo(on.undo, [page.box, page.open], **turn)
    page.redo.click(on.redo, page.open, **turn)
    page.earlier.click(None, js=parts.act("earlier"))
    page.menu.input(on.choose, [page.menu, page.open], **turn)
    page.adapter.input(on.choose_adapter, page.adapter, page.strength, **event)
    page.box.stop(on.stop, queue=False, **event)
    demo.load(on.load, None, **turn).then(None, js=parts.PAGE_JS)
    demo.unload(on.leave)


def launch(
    demo: gr.Blocks,
    sessions: Sessions,
    host: str | None,
    port: int,
    auth: list[tuple[str, str]],
    ready: Callable[[str], None],
    kept: Kept | None = None,
) -> None:
    """Serve page and API until Ctrl-C; `ready` is told the address. Raises OSError when the port is taken."""
    theme = gr.themes.Default(primary_hue="indigo", radius_size="lg", font=["system-ui", "sans-serif"])
    # What is on the internet anyway gains nothing from a check of the name that it was asked by.
    guard = (Guard, (names_of(bare(host)),), {"any_host": space.is_one()})  # as Starlette unpacks it
    api = Api(sessions, Keys(bare(host), private=bool(auth)))
    routes = [*api.routes(), *KeptRoutes(kept, owner_of).routes()]
    with loops_closed(), without_proxies():
        demo.launch(
            server_name=bracketed(bare(host)),
            server_port=port,
            auth=auth or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,  # it would keep a copy of what was written, and the chats are kept already
            app_kwargs={"openapi_url": None, "middleware": [guard], "routes": routes},
            max_threads=THREADS,
            max_file_size="8mb",
            footer_links=["api"],
            theme=theme.set(
                body_text_color_subdued=GREY, block_info_text_color=GREY, input_placeholder_color=GREY
            ),
            css_paths=[Path(__file__).with_name(name) for name in ("screen.css", "chat_list.css")],
            head=f"{parts.POLICY}<script>{parts.HEAD_JS}</script>",
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
