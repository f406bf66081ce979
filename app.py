"""Chat with a GGUF model in the browser: python app.py [--model NAME-or-FILE.gguf] [--engine auto]"""

import sys
from pathlib import Path

from chat import cli
from chat.session import Sessions

settings = cli.parse(sys.argv[1:] if __name__ == "__main__" else [])
host = cli.make_host(settings, Path(__file__).resolve().with_name("models.json"))

from chat.screen import build_demo, launch  # noqa: E402  Gradio takes seconds: not before the options are right

demo = build_demo(Sessions(host))

if __name__ == "__main__":
    try:
        cli.check_address(settings)
        cli.bring_default(host)
        cli.warm_up(host)
        launch(demo, settings.host, settings.port, settings.auth)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C before the page was there; afterwards launch returns
    finally:
        host.close()
