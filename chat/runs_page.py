"""The page /runs: what was trained in outputs/, what was made in models/. To look at: it writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chat import space
from chat.cards_html import command, link, name, notes
from chat.files_html import files_html, files_of_run
from chat.gradio_import import gr
from chat.made_files import MadeFile, read_files
from chat.runs import Run, Sweep, read_runs
from chat.runs_html import running_html, runs_html
from core.errors import ChatError
from core.registry import Registry

PATH = "/runs"
REFRESH_S = 5  # while something is trained
HEAD = (
    f"<style>{Path(__file__).with_name('runs.css').read_text()}</style>"
    '<header class="runs"><a href="./">← Back to the chat</a><h1>Runs and files</h1></header>'
)
# A title of its own, the chat's choice of colours, and the part that the address names: it is there by now.
PAGE_JS = """() => {
  document.title = 'Runs and files · tune2chat';
  setTimeout(() => document.getElementById(location.hash.slice(1))?.scrollIntoView(), 100);
  const theme = localStorage.getItem('tune2chat-theme');
  if (theme) document.body.classList.toggle('dark', theme === 'dark');
}"""

FIRST_RUN = (
    "<p>Nothing was trained here yet. The first run takes minutes on any machine, without an account:</p>"
    + command("make train")
)
FIRST_FILE = "<p>No model was made here yet. This makes one of the newest run:</p>" + command("make convert")
ON_A_SPACE = "<p>A Space keeps no runs: they stay on the machine that trained them.</p>"


def add_runs_page(demo: gr.Blocks, menu: Registry) -> None:
    """Add the page to the app `demo`, outside of its own `with`. `menu`: the models that the app offers."""

    def whole(request: gr.Request) -> list[Any]:
        found = _read(menu)
        running = _running(found[0])
        names = [run.name for run in running]
        html = page_html(found, menu, request.query_params.get("run"))
        return [_now(running), html, names, gr.Timer(active=bool(names))]

    def again(before: list[str], request: gr.Request) -> list[Any]:
        """The runs that go on; all of the page when one has begun or ended."""
        running = _running(_read(menu)[0])
        if [run.name for run in running] != before:
            return whole(request)
        return [_now(running), gr.skip(), gr.skip(), gr.skip()]

    # With two pages Gradio shows a bar with "Home" in it; one that is not in the page at all hides nothing.
    no_bar: Any = {"visible": "hidden"}
    with demo:
        gr.components.Navbar(**no_bar)
    with demo.route("Runs and files", PATH, show_in_navbar=False):
        gr.components.Navbar(**no_bar)
        with gr.Row(elem_id="top"):
            _html(HEAD)
            refresh = gr.Button("Refresh", size="sm", elem_id="refresh")
        now, rest = _html("", "now"), _html("<p>Reading outputs/ and models/…</p>", "rest")
        names, timer = gr.State([]), gr.Timer(REFRESH_S, active=False)
        shown = [now, rest, names, timer]
        event: dict[str, Any] = {"outputs": shown, "api_visibility": "private", "show_progress": "hidden"}
        demo.load(whole, None, **event).then(None, js=PAGE_JS)
        refresh.click(whole, None, **event)
        timer.tick(again, names, **event)
    demo.current_page = ""  # or what is added later would be this page's


def _html(value: str, name: str | None = None) -> gr.HTML:
    return gr.HTML(value, elem_id=name, js_on_load=None, apply_default_css=False)


def _read(menu: Registry) -> tuple[list[Run | Sweep], list[str]]:
    try:
        return read_runs(menu.folder / "outputs")
    except ChatError as error:
        return [], [str(error)]


def _running(runs: Sequence[Run | Sweep]) -> list[Run]:
    return [run for run in runs if isinstance(run, Run) and run.state == "running"]


def _now(running: Sequence[Run]) -> str:
    return f'<div class="runs"><h2>Running</h2>{running_html(running)}</div>' if running else ""


def page_html(found: tuple[list[Run | Sweep], list[str]], menu: Registry, chosen: str | None) -> str:
    """All but what runs now: the runs `found`, or the `chosen` one of them, and the files."""
    runs, said = found
    files: list[MadeFile] = []
    of_files: list[str] = []
    try:
        files, of_files = read_files(menu)
    except ChatError as error:
        of_files = [str(error)]
    ended = [run for run in runs if not (isinstance(run, Run) and run.state == "running")]
    top = ""
    if chosen:
        ended = [run for run in ended if run.name == chosen]
        none = "" if any(run.name == chosen for run in runs) else f"No run is called {name(chosen)}. "
        top = f"<p>{none}{link('runs', 'Show all runs')}</p>"
    cards = runs_html(ended, lambda run: files_of_run(files, run))
    if not runs:
        cards = ON_A_SPACE if space.is_one() else FIRST_RUN
    shown = files_html(files, {run.name for run in runs}) or FIRST_FILE
    return (
        f'<div class="runs"><h2>Runs</h2>{top}{notes(said)}{cards}'
        f"<h2>Files in models/</h2>{notes(of_files)}{shown}</div>"
    )
