"""A reply that is JSON, as a tree that folds: what a schema asked for is read field by field."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from chat.gradio_import import gr

OPEN = 2  # levels that stand open at first
DEEPEST = 40

COPY_JS = """const button = element.querySelector('button');
button.onclick = () => navigator.clipboard.writeText(button.value);"""


def json_tree(text: str) -> Any:
    """The component for a reply's text; None where that isn't JSON with parts, as when it was cut."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict | list):
        return None
    copy = f'<button value="{escape(text)}">Copy JSON</button>'
    return gr.HTML(f'<div class="json">{_html(value, 0)}{copy}</div>', js_on_load=COPY_JS, padding=False)


def _html(value: Any, level: int) -> str:
    if not isinstance(value, dict | list) or not value or level > DEEPEST:
        return f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"
    named = value.items() if isinstance(value, dict) else enumerate(value, 1)
    rows = "".join(f"<li><b>{escape(str(name))}</b> {_html(each, level + 1)}</li>" for name, each in named)
    kind = "field" if isinstance(value, dict) else "item"
    count = f"{len(value):,} {kind}{'' if len(value) == 1 else 's'}"
    return f"<details{' open' if level < OPEN else ''}><summary>{count}</summary><ul>{rows}</ul></details>"
