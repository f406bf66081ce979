"""Chat with a GGUF model in the browser: python app.py [--model NAME-or-FILE.gguf] [--engine auto]"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the page is served, Ctrl-C has nothing to close

from pathlib import Path

try:
    from chat import cli
    from chat.reply import Sessions
except ModuleNotFoundError as error:
    sys.exit(
        f"error: {error.name!r} is not installed for {sys.executable}; "
        "run 'make chat', or: pip install -r requirements.txt"
    )

settings = cli.parse(sys.argv[1:] if __name__ == "__main__" else [])
host = cli.make_host(settings, Path(__file__).resolve().with_name("models.json"))
if __name__ == "__main__":
    cli.prepare(settings, host)

cli.on_a_space()

from chat.screen import build_demo, launch  # noqa: E402  Gradio takes seconds: not before all else is right

sessions = Sessions(host)
kept = cli.keeper(settings, Path(__file__).resolve().parent)
demo = build_demo(sessions, kept, settings.titles)

if __name__ == "__main__":
    try:
        with cli.interruptible():
            launch(
                demo,
                sessions,
                settings.host,
                settings.port,
                settings.auth,
                lambda address: cli.page_is_up(address, host),
                kept,
            )
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C before the page was there; afterwards launch returns
    finally:
        host.close()
