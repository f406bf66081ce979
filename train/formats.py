"""Rows of any data set whose columns give its format away.

| format | columns |
|---|---|
| messages | `messages`: turns with `role` (system, user, assistant) and `content` |
| sharegpt | `conversations`: turns with `from` (system, human, gpt) and `value` |
| alpaca | `instruction`, `output`, and `input` if there is more to say |
| prompt-completion | `prompt`, `completion`: two texts, or two lists of messages |
| text | `text`, where none of the others fits: they often bring their own rendering under this name |

Chats are an optional system turn, then user and assistant in turn, and end with the assistant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from train.errors import TrainError
from train.example import Example
from train.loaded import Loaded
from train.recipe import Data
from train.table import Row, Table, group_of, text_of, writable

Messages = list[dict[str, str]]

# How the roles are called in the wild.
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant"),
}
COLUMNS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
}


class LeftOut(Exception):
    """Why a row is no example."""


def read_any(table: Table, data: Data, loaded: Loaded) -> None:
    """Read rows by the format that their columns give away. Raises TrainError if that is none or several."""
    layout = loaded.layout = find_format(table)
    to_text = {"text": _text, "prompt-completion": _prompt_and_completion}
    if layout != "text" and data.format == "text" and layout not in to_text:
        raise TrainError(
            f"format: text has no meaning for {table.where}, whose rows are {layout}; leave format out, or "
            "bring a column 'text'"
        )
    seen = set[str]()
    for row in table.rows:
        try:
            if layout == "text" or data.format == "text":
                text = to_text[layout](row)
                example = Example([], text, group_of(row, data, text))
            else:
                messages = chat(CHATS[layout](row), loaded)
                first = next(turn["content"] for turn in messages if turn["role"] == "user")
                example = Example(messages, "", group_of(row, data, first))
        except LeftOut as reason:
            loaded.left_out[str(reason)] += 1
            continue
        add_once(example, seen, loaded)


def find_format(table: Table) -> str:
    """Name the format. Raises TrainError, with the columns."""
    found = [name for name, columns in COLUMNS.items() if {*columns} <= {*table.columns}]
    if not found and "text" in table.columns:
        return "text"
    if len(found) == 1:
        return found[0]
    known = "; ".join(", ".join(columns) for columns in COLUMNS.values())
    problem = f"could be {' or '.join(found)}" if found else f"are of no known format. Known: {known}; text"
    cure = "remove one's columns" if found else "rename them, or name the data's task in the recipe"
    raise TrainError(f"the columns of {table.where} ({', '.join(table.columns)}) {problem}; {cure}")


def add_once(example: Example, seen: set[str], loaded: Loaded) -> None:
    """Add the example, unless one with the same content came before."""
    content = example.text or repr(example.messages)
    if content in seen:
        loaded.left_out["the same as an earlier row"] += 1
        return
    seen.add(content)
    loaded.examples.append(example)


def chat(turns: Any, loaded: Loaded) -> Messages:
    """Turns of either naming as a chat that ends with the assistant. Raises LeftOut."""
    if not isinstance(turns, list) or not turns:
        raise LeftOut("no turns")
    messages = [_turn(turn) for turn in turns]
    end = next((at for at in range(len(messages), 0, -1) if messages[at - 1]["role"] == "assistant"), 0)
    if not end:
        raise LeftOut("no reply of the assistant")
    if end < len(messages):
        loaded.changed["turns after the last reply cut off"] += 1
    messages = messages[:end]
    if messages[0]["role"] == "system" and not messages[0]["content"].strip():
        del messages[0]
    if not all(turn["content"].strip() for turn in messages):
        raise LeftOut("an empty turn")
    talk = messages[1:] if messages[0]["role"] == "system" else messages
    if [turn["role"] for turn in talk] != ["user", "assistant"] * (len(talk) // 2):
        raise LeftOut("user and assistant don't take turns")
    return messages


def _turn(turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise LeftOut("a turn that is no object")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise LeftOut("a role other than system, user and assistant")
    if not isinstance(content, str):
        raise LeftOut("a turn that is no text")
    return {"role": ROLES[role.lower()], "content": trimmed(content)}


def trimmed(text: str) -> str:
    """`text` without empty lines around it; the first line's indentation, which code needs, stays."""
    return writable(text).strip("\n").rstrip()


def instruction_chat(instruction: str, further: str, reply: str) -> Messages:
    """A chat of one turn; `further` is what Alpaca calls the input. Raises LeftOut."""
    if not instruction.strip():
        raise LeftOut("no instruction")
    if not reply.strip():
        raise LeftOut("no output")
    asked = "\n\n".join(part.strip() for part in (instruction, further) if part.strip())
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": trimmed(reply)}]


def _alpaca(row: Row) -> Any:
    return instruction_chat(text_of(row, "instruction"), text_of(row, "input"), text_of(row, "output"))


def _prompt_completion(row: Row) -> Any:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise LeftOut("a prompt or a completion is missing")
    return prompt + completion


def _prompt_and_completion(row: Row) -> str:
    if not isinstance(row.get("prompt"), str) or not isinstance(row.get("completion"), str):
        raise LeftOut("a prompt or a completion that is no text")
    return _filled(text_of(row, "prompt") + text_of(row, "completion"))


def _text(row: Row) -> str:
    return _filled(text_of(row, "text"))


def _filled(text: str) -> str:
    if not text.strip():
        raise LeftOut("no text")
    return text


CHATS: dict[str, Callable[[Row], Any]] = {
    "messages": lambda row: row.get("messages"),
    "sharegpt": lambda row: row.get("conversations"),
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
}
