"""Tables in Markdown whose cells show any text as it stands, with its marks, lines and indents."""

from __future__ import annotations

import re
from collections.abc import Sequence

Row = Sequence[str]


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return the table, or nothing where there are no rows."""
    lines = [" | ".join(map(_cell, row)) for row in [head, *rows]]
    lines.insert(1, " | ".join(["---"] * len(head)))
    return "\n".join(f"| {line} |" for line in lines) if rows else ""


def _cell(text: str) -> str:
    marked = re.sub(r"[\\`*_{}\[\]<>|~$#!]", r"\\\g<0>", text.strip("\r\n").replace("&", "&amp;"))
    lines = [re.sub(r"^ +", lambda found: "&nbsp;" * len(found[0]), line) for line in marked.splitlines()]
    return "<br>".join(lines).replace("\t", "&nbsp;" * 4)
