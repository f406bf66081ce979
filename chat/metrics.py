"""What the app has done and is doing, for Prometheus: counts and seconds, never a text or a name of a user.

The form is https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4: few enough lines to
need no library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chat.turn_queue import Queue

TEXT = "text/plain; version=0.0.4; charset=utf-8"

Values = Mapping[tuple[tuple[str, str], ...], float]


def metrics(queue: Queue, answered: Mapping[tuple[str, int], int]) -> str:
    """All metrics. `answered` counts the API's answers by route and status; replies are the page's too."""
    with queue.changed:
        counts, running, waiting = queue.counts, queue.running, len(queue.waiting)
        finished: Values = {(("finish_reason", reason),): n for reason, n in counts.finished.items()}
        tokens = counts.prompt_tokens, counts.cached_tokens, counts.generated_tokens
        seconds = counts.waiting_s, counts.first_token_s
    requests: Values = {
        (("route", route), ("status", str(status))): n for (route, status), n in sorted(answered.items())
    }
    families: list[tuple[str, str, str, Values]] = [
        ("http_requests_total", "counter", "Answers of the API.", requests),
        ("requests_running", "gauge", "Replies that are being written.", {(): running}),
        ("requests_waiting", "gauge", "Replies that stand in line.", {(): waiting}),
        ("replies_total", "counter", "Replies that have ended, by how.", finished),
        ("prompt_tokens_total", "counter", "Tokens of prompts, cached ones included.", {(): tokens[0]}),
        ("cached_tokens_total", "counter", "Tokens of prompts that the cache had.", {(): tokens[1]}),
        ("generated_tokens_total", "counter", "Tokens of replies.", {(): tokens[2]}),
        ("waiting_seconds_total", "counter", "Time in line, of all replies.", {(): seconds[0]}),
        ("first_token_seconds_total", "counter", "From there to the first token.", {(): seconds[1]}),
    ]
    return "".join(line for family in families for line in _lines(*family))


def _lines(name: str, kind: str, about: str, values: Values) -> Iterator[str]:
    full = f"tune2chat_{name}"
    yield f"# HELP {full} {about}\n# TYPE {full} {kind}\n"
    for labels, value in values.items():
        told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        yield f"{full}{{{told}}} {value}\n" if told else f"{full} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
