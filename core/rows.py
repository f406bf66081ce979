"""Chats with the token ids that training saw: `prompts.jsonl` of a run, or those that come with the project.

One JSON object a line: `messages` (role and content), `ids` (the whole chat's tokens, BOS included), `mask`
(1 where the token was trained, 0 elsewhere, as many as `ids`), `split` (`train` or `test`) and, since some
templates write the date, `rendered`, the time at which it was done.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from core.errors import ConvertError
from core.files import whole
from core.prompt import PromptEncoder

PLAIN_CHATS = Path(__file__).with_name("chats.jsonl")

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Row:
    """One chat. `mask[i]` says whether `ids[i]` is one of the assistant's tokens, its stop token included."""

    messages: list[dict[str, str]]
    ids: list[int]
    mask: list[int]
    split: Split
    rendered: str = ""  # when, in ISO format: some templates write the date. Empty where nobody noted it


def load_rows(path: Path) -> list[Row]:
    """Read a run's `prompts.jsonl`. Raises ConvertError, which names the line."""
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(_row(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise ConvertError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise ConvertError(f"{path} is empty; train again, or remove it to use the project's own chats")
    return rows


def _row(raw: Any) -> Row:
    ids, mask = list(map(int, raw["ids"])), list(map(int, raw["mask"]))
    if len(ids) != len(mask) or not set(mask) <= {0, 1}:
        raise ValueError(f"mask has {len(mask)} entries for {len(ids)} ids, or others than 0 and 1")
    if not ids or min(ids) < 0:
        raise ValueError("ids are missing, or negative")
    for message in raw["messages"]:
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise ValueError("messages must have a role and a content, both text")
    if raw["split"] not in ("train", "test"):
        raise ValueError(f"split is {raw['split']!r}, not train or test")
    rendered = raw.get("rendered", "")
    datetime.fromisoformat(rendered or "2000-01-01")  # raises ValueError
    return Row(raw["messages"], ids, mask, raw["split"], rendered)


def plain_rows(encoder: PromptEncoder, stop_ids: Collection[int], rendered: str = "") -> list[Row]:
    """The project's own chats, encoded for a model that comes without a run; half are for testing.

    The last reply is marked, up to its stop token, inclusive. `rendered`: the time that the encoder tells.
    """
    rows = []
    for number, line in enumerate(PLAIN_CHATS.read_text(encoding="utf-8").splitlines()):
        messages = json.loads(line)
        prompt = encoder.encode(messages[:-1])
        ids = encoder.encode(messages, add_generation_prompt=False)
        # Where a template's generation prompt isn't how its replies begin, from where they part.
        start = next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), len(prompt))
        end = next((i + 1 for i in range(start, len(ids)) if ids[i] in stop_ids), len(ids))
        mask = [int(start <= i < end) for i in range(len(ids))]
        rows.append(Row(messages, ids, mask, "test" if number % 2 else "train", rendered))
    return rows


def save_rows(path: Path, rows: list[Row]) -> None:
    """Write rows as `load_rows` reads them."""
    with whole(path) as partial:
        partial.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
