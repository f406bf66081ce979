"""Renders chat templates that nobody vouches for, in a process with limits: `python -m core.template_worker`.

One JSON object a line on standard input (the arguments of `core.prompt.render`), one on standard output
(`text` or `error`). It ends when its input closes. Limited are time and what
`core.worker_limits` has. Not covered: who breaks out of Jinja's sandbox runs as the user who started the app.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib import import_module
from typing import Any

from core.errors import TemplateError
from core.prompt import render
from core.worker_limits import limit_this_process

TIME_LIMIT_S = 3.0
MEMORY_BYTES = 512 * 2**20  # above what the process takes when it starts
OUTPUT_CHARACTERS = 16 * 2**20

# Jinja and Python import these at their first use, when no file can be opened any more.
_LATE_IMPORTS = ("encodings.unicode_escape", "jinja2.constants", "jinja2.debug", "pprint", "textwrap")


def main() -> None:
    """Answer requests until standard input closes or a template has used up the memory."""
    _limit_this_process()
    answer: dict[str, str] = {}  # the first line says that the process has started
    while True:
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
        line = sys.stdin.buffer.readline()
        if not line or "fatal" in answer:
            return
        _set_timer(TIME_LIMIT_S)
        answer = _answer(json.loads(line))
        _set_timer(0)


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        text = render(**request)
    except TemplateError as error:
        # What is left after an allocation failed may be in any state: the parent starts another process.
        return {"error": str(error)} | ({"fatal": ""} if isinstance(error.__cause__, MemoryError) else {})
    if len(text) > OUTPUT_CHARACTERS:
        limit = f"{OUTPUT_CHARACTERS:,}"
        return {"error": f"This model's chat template wrote more than {limit} characters. Use another file."}
    return {"text": text}


def _set_timer(seconds: float) -> None:
    # The signal's default action ends the process wherever it is, in a loop of C code too.
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_this_process() -> None:
    for module in _LATE_IMPORTS:
        import_module(module)
    time.localtime()  # reads the time zone, for strftime_now, while files can still be opened
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())  # what a template says is not for the terminal
    limit_this_process(MEMORY_BYTES, open_files=3)  # those that are open


if __name__ == "__main__":
    main()
