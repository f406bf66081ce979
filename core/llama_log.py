"""Why llama.cpp refused a model: the first line of its log that names the reason.

Its later lines only pass the failure on ("failed to load model", "exiting due to model loading error").
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# What a caller says of a failure below it, in llama.cpp's src/, common/ and tools/server.
_SAYS_NOTHING = re.compile(
    r"failed to load model|exiting due to|cleaning up|failed to create context with model"
    r"|encountered an error|failed to read (?:header|tensor info)|unable to load model"
    r"|^task id = -?\d+, error",  # a request that was refused
    re.IGNORECASE,
)
_MEMORY = re.compile(
    r"(?:unable|failed|cannot) to (?:allocate|reserve)|cannot allocate|bad_alloc"
    r"|(?:out of|insufficient) memory",
    re.IGNORECASE,
)
_LEVEL = re.compile(r"^[\d.]+ ([A-Z]) (.*)")  # how llama-server begins a line
_CRASH = re.compile(r"GGML_ASSERT|GGML_ABORT|terminate called|what\(\): |bad_alloc")
_CALLER = re.compile(
    r"^(?:\w{2,5} {2,})?[A-Za-z]\w*(?:_|::)\w*: +(?=\S)"
)  # a function of C++, with an underscore
_WRAPPERS = re.compile(r"^(?:error loading model(?: \w+)?|failed to initialize the context): ")


def first_reason(errors: Iterable[str]) -> str:
    """Return the first of llama.cpp's error messages that says why, without who said it; else ""."""
    for line in errors:
        text = _CALLER.sub("", line.strip(), count=1)
        while (shorter := _CALLER.sub("", _WRAPPERS.sub("", text), count=1)) != text:
            text = shorter
        if text and not _SAYS_NOTHING.search(text):
            return f"the memory is too small: {text}" if _MEMORY.search(text) else text
    return ""


def server_errors(log: Iterable[str]) -> list[str]:
    """Return the error messages in the log of llama-server, and what the C++ runtime says of a crash."""
    found = []
    for line in log:
        level = _LEVEL.match(line)
        if (level and level[1] == "E") or _CRASH.search(line):
            found.append(level[2] if level else line)
    return found
