"""The turns of a chat, out of whatever they come in.

| what stands in a cell | how it is read |
|---|---|
| a list of objects with a role | as it is |
| `{"user": "...", "assistant": "..."}`, also `human`, `gpt`, `input`, `output` and more | a turn a role |
| pairs of two texts | what the user and the assistant say, or a role and its text |
| texts (UltraChat, LIMA) | the user and the assistant in turn, which is counted |
| an object of columns; the text of any of these, as JSON or as Python writes it | what it stands for |
| `Human: ...`, `Assistant: ...` in one text (Anthropic's HH, Guanaco), or `Q:`, `A:` | a turn a heading |
| a chat of ChatGPT's export (conversations.json): a tree of messages | the branch that was on screen |
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from core.errors import LeftOut
from train.cells import empty, missing

# How the roles are called in the wild.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "model", "ai", "bot", "chatbot", "bard", "bing"), "assistant"
    ),
    **dict.fromkeys(
        (
            *("tool", "function", "function_call", "function_response", "tool_call", "tool_response"),
            "observation",
        ),
        "tool",
    ),
}
ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
CONTENT_KEYS = ("content", "value", "text", "parts")
# Keys of an object that holds a question and its answer.
_ASKED = ("input", "prompt", "question", "instruction", "query")
_REPLIED = ("output", "response", "answer", "completion", "reply")
_SIDES = {
    **{name: role for name, role in ROLES.items() if role != "tool"},
    **dict.fromkeys(_ASKED, "user"),
    **dict.fromkeys(_REPLIED, "assistant"),
}
_ORDER = ("system", "user", "assistant")
# What people write before each side's words; a text has one of these sets.
_HEADINGS: tuple[dict[str, str], ...] = (
    {"Human": "user", "Assistant": "assistant", "System": "system"},
    {"User": "user", "Assistant": "assistant", "System": "system"},
    {"Q": "user", "A": "assistant"},
    {"Question": "user", "Answer": "assistant"},
    {"Instruction": "user", "Input": "user", "Response": "assistant"},
)

AS_TURNS = "headings such as 'Human:' in the prompt and its answer, read as whose turn it is"
IN_TURN = "texts in a list, read as those of the user and the assistant in turn"


def listed(turns: Any, changed: dict[str, str] | None = None) -> list[Any]:
    """The turns that `turns` stands for; what is guessed is noted in `changed`. Raises LeftOut."""
    given = turns
    if is_export(turns):
        turns = export_turns(turns)
    if isinstance(turns, str):
        turns = written_out(turns) or parsed(turns)
    if isinstance(turns, dict):
        turns = _of_columns(turns)
    if not isinstance(turns, list) or not turns:
        raise LeftOut("no turns", "" if empty(given) else given)
    if are_texts(turns):
        if changed is not None:
            changed[IN_TURN] = repr(turns[0])
        return [_said(_ORDER[1 + at % 2], text) for at, text in enumerate(turns)]
    return [turn for entry in turns for turn in _entry(entry)]


def parsed(text: str) -> Any:
    """The value that `text` is as JSON, or as Python writes it; None if neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def written_out(text: str) -> list[dict[str, Any]]:
    """The turns of a chat that is written in one text with headings; none if it isn't that."""
    for sides in _HEADINGS:
        if not any(f"{name}:" in text for name, side in sides.items() if side == "assistant"):
            continue  # as nearly all texts, and quickly seen
        before, *pieces = re.split(rf"(?:(?:^|\n)[^\S\n]*(?:###\s*)?|###\s*)({'|'.join(sides)}):", text)
        if not before.strip() and {"user", "assistant"} <= {sides[name] for name in pieces[::2]}:
            pairs = zip(pieces[::2], pieces[1::2], strict=True)
            return [_said(sides[name], said.strip()) for name, said in pairs]
    return []


def written_pair(prompt: str, completion: str) -> list[dict[str, Any]]:
    """The turns of a prompt and its completion of which both have headings; none if they haven't.

    The assistant's heading may be the end of the prompt.
    """
    turns = written_out(f"{prompt}\n\n{completion}")
    if not turns or turns[-1]["role"] != "assistant":
        return []
    before = completion.strip().removesuffix(turns[-1]["content"]).strip(" \n#")
    return turns if not before or re.fullmatch(r"\w+:", before) else []


def are_texts(turns: Any) -> bool:
    """Whether this is a chat of mere texts."""
    return isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, str) for turn in turns)


def _of_columns(turns: dict[str, Any]) -> Any:
    """The turns of an object of columns, or of one that holds nothing but them; None if it is neither."""
    columns = list(turns.values())
    if not columns or not all(isinstance(column, list) for column in columns):
        return None
    if len(columns) == 1 and all(isinstance(turn, dict) for turn in columns[0]):
        return columns[0]
    if len({*map(len, columns)}) != 1:
        return None
    return [dict(zip(turns, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _entry(entry: Any) -> list[Any]:
    """The turns of one entry of a list: most often one."""
    if isinstance(entry, list | tuple) and len(entry) == 2 and all(isinstance(t, str) for t in entry):
        role, text = entry
        if role.strip().lower() in ROLES:
            return [_said(role, text)]
        return [_said("user", role), _said("assistant", text)]
    if not isinstance(entry, dict):
        return [entry]
    there = {str(key).strip().lower(): value for key, value in entry.items() if not missing(value)}
    sides = {_SIDES[key]: value for key, value in there.items() if key in _SIDES}
    further = {key: value for key, value in there.items() if key not in _SIDES}
    clear = len(sides) + len(further) == len(there) and all(isinstance(text, str) for text in sides.values())
    if not clear or not {"user", "assistant"} & {*sides} or {*ROLE_KEYS, *CONTENT_KEYS} & {*further}:
        return [entry]
    turns = [_said(role, sides[role]) for role in _ORDER if role in sides]
    turns[-1] |= further  # such as a weight: it is about the reply
    return turns


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


# What a message may hold beside text, as `train.turns` calls the kinds of parts.
_MEDIA = {"image_asset_pointer": "image", "audio_asset_pointer": "audio"}
_MEDIA |= {"real_time_user_audio_video_asset_pointer": "video", "video_container_asset_pointer": "video"}
# The summary of a thought and how long it took: the thought itself isn't in the export.
_SUMMARIES = ("thoughts", "reasoning_recap")
_PROFILE = ("user_profile", "user_instructions")


def is_export(row: Any) -> bool:
    """Whether a row is a chat of ChatGPT's export."""
    return isinstance(row, dict) and isinstance(row.get("mapping"), dict) and "current_node" in row


def export_turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns of ChatGPT's export on the branch that was on screen, oldest first.

    An answer that was asked for again and a message that was edited are branches of their own: the one on
    screen ends at `current_node` and is read from there up to the root. What ChatGPT keeps for itself, which
    nobody saw, isn't part of it. Raises LeftOut for a broken tree.
    """
    nodes, at = row["mapping"], row["current_node"]
    found: list[dict[str, Any]] = []
    for _ in range(len(nodes) + 1):
        if at is None:
            return found[::-1]
        node = nodes.get(at) if isinstance(at, str) else None
        if not isinstance(node, dict):
            raise LeftOut("a ChatGPT export with a message that isn't there", at)
        if turn := _turn(node.get("message")):
            found.append(turn)
        at = node.get("parent")
    raise LeftOut("a ChatGPT export whose messages go round in a circle", row["current_node"])


def _turn(message: Any) -> dict[str, Any] | None:
    """A message as a turn; None for one without words or that nobody saw."""
    if not isinstance(message, dict):
        return None
    content, author = message.get("content"), message.get("author")
    content = content if isinstance(content, dict) else {"parts": [content]}
    kind, role = content.get("content_type"), author.get("role") if isinstance(author, dict) else author
    if kind == "user_editable_context":  # what the user told ChatGPT about all chats
        told = [content[key] for key in _PROFILE if isinstance(content.get(key), str)]
        return {"role": "system", "content": "\n\n".join(told)}
    metadata = message.get("metadata")
    hidden = isinstance(metadata, dict) and metadata.get("is_visually_hidden_from_conversation")
    if hidden or kind in _SUMMARIES:
        return None
    if message.get("recipient") not in (None, "all"):
        return {"role": role, "content": "", "tool_calls": [message["recipient"]]}
    parts = content.get("parts", [content.get("text", "")])
    if role in ("system", "assistant", "user") and parts in ([], [""]):
        return None
    return {"role": role, "content": {"parts": [_part(part) for part in parts]}}


def _part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    kind = part.get("content_type")
    if kind == "audio_transcription":
        return part.get("text", "")
    return {"type": _MEDIA.get(str(kind), str(kind))}
