"""Chats that other programs exported: ChatGPT's, and those of llama.cpp's web UI.

| program | a chat |
|---|---|
| ChatGPT: `conversations.json` of an account's export | `mapping`: nodes with `parent`; `current_node` |
| llama.cpp: `tools/ui/src/lib/types/database.d.ts` | `conv` with `currNode`; `messages` with `parent` |

What has no place in a chat of text (pictures, tools and what they said, system messages in the middle) is
left out and counted, and what came after it follows the message before it (`chat.grow`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chat.grow import BROKEN, Item, Notes, Side, grow
from chat.tree import YEAR_10000, Chat, Tree
from core.errors import ChatError

MEDIA = "pictures and other files left out"
TOOLS = "calls and results of tools left out"
SYSTEM = "system messages in the middle of a chat left out"
SUMMARIES = "summaries of thoughts left out"
EMPTY = "empty messages left out"
SOURCES = "marks of sources, which only ChatGPT can show, left out"
_SOURCES = re.compile("\ue200(?:file)?cite\ue202[^\ue200\ue201]*\ue201")
ONLY_MEDIA = "[picture]"  # a question of nothing else: its reply has to follow something


def of_chatgpt(given: Mapping[str, Any], notes: Notes) -> Tree:
    """Read a chat of ChatGPT's export. Raises ChatError."""
    mapping, told, items = given["mapping"], list[str](), list[Item]()
    for name, node in mapping.items():
        parent = node.get("parent") if isinstance(node, Mapping) else 0
        if parent is not None and (not isinstance(parent, str) or parent not in mapping):
            raise ChatError(BROKEN)
        message = node.get("message")
        role, text = _said(message, told, notes) if isinstance(message, Mapping) else ("", "")
        about = message.get("metadata") if role else None
        model = about.get("model_slug") if isinstance(about, Mapping) else ""
        at = _time(message.get("create_time")) if role else None
        items.append(Item(name, parent or "", role, text, "", at, _text(model)))
    chat = _chat(given.get("title"), given.get("create_time"), given.get("update_time"))
    chat.system_prompt = "\n\n".join(told)
    current = given.get("current_node")
    return grow(chat, items, current if isinstance(current, str) else "", notes)


def _said(message: Mapping[str, Any], told: list[str], notes: Notes) -> tuple[Side, str]:
    """The side and the text of a message of ChatGPT's, neither where it is left out.

    What ChatGPT keeps for itself, which nobody saw, isn't counted.
    """
    content, author, about = (_object(message.get(key)) for key in ("content", "author", "metadata"))
    kind, role = content.get("content_type"), author.get("role")
    if kind == "user_editable_context":  # what the user told ChatGPT about all chats
        told += [
            text
            for key in ("user_profile", "user_instructions")
            if (text := _text(content.get(key))) and text not in told
        ]
    elif about.get("is_visually_hidden_from_conversation"):
        pass
    elif role == "tool" or message.get("recipient") not in (None, "all"):
        notes[TOOLS] += 1
    elif kind in ("thoughts", "reasoning_recap"):  # the thought itself isn't in the export
        notes[SUMMARIES] += 1
    else:
        parts = content.get("parts")
        parts = parts if isinstance(parts, list) else [content.get("text")]
        text = "\n\n".join(text for part in parts if (text := _part(part, notes)).strip())
        text, sources = _SOURCES.subn("", text)
        notes += Notes({SOURCES: sources} if sources else {})
        return _sided(role, text, any(isinstance(part, Mapping) for part in parts), notes)
    return "", ""


def _sided(role: Any, text: str, media: bool, notes: Notes) -> tuple[Side, str]:
    if role == "user" and (text.strip() or media):
        return "user", text or ONLY_MEDIA
    if role == "assistant" and text.strip():
        return "assistant", text
    if text.strip():
        notes[SYSTEM] += 1
    elif role in ("user", "assistant") and not media:
        notes[EMPTY] += 1
    return "", ""


def _part(part: Any, notes: Notes) -> str:
    """The text of a part of a message of ChatGPT's; of what was spoken, what was understood."""
    if not isinstance(part, Mapping):
        return _text(part)
    if part.get("content_type") != "audio_transcription":
        notes[MEDIA] += 1
        return ""
    return _text(part.get("text"))


def of_llama_cpp(given: Mapping[str, Any], messages: list[Any], notes: Notes) -> Tree:
    """Read a chat of llama.cpp's web UI, of any of its ages. Raises ChatError."""
    chat = _chat(given.get("name"), None, given.get("lastModified"), 1_000)
    chat.pinned = given.get("pinned") is True
    rows = [(_id(row.get("id")), row) for row in map(_object, messages)]
    there, missing = {name for name, _ in rows}, set[str]()
    roots = {"", *(name for name, row in rows if row.get("type") == "root")}
    items = list[Item]()
    for name, row in rows:
        parent = _id(row.get("parent"))
        if parent not in there:  # the root, which is no message; it isn't in files of one branch
            missing.add(parent)
            parent = ""
        role, text = _written(row, chat, parent in roots, notes)
        thought = _text(row.get("reasoningContent")) or _text(row.get("thinking"))
        at, model = _time(row.get("timestamp"), 1_000), _text(row.get("model"))
        items.append(Item(name, parent, role, text, thought if role == "assistant" else "", at, model))
    if len(missing - {"", "-1"}) > 1:
        raise ChatError(BROKEN)
    return grow(chat, items, _id(given.get("currNode")), notes)


def _written(row: Mapping[str, Any], chat: Chat, first: bool, notes: Notes) -> tuple[Side, str]:
    """The side and the text of a message of llama.cpp's, with the texts of its files: the model saw them."""
    role, texts, media = row.get("role"), [_text(row.get("content"))], False
    if row.get("type") == "root":
        return "", ""
    if role == "tool":
        notes[TOOLS] += 1
        return "", ""
    if row.get("toolCalls") not in (None, "", "[]", []):
        notes[TOOLS] += 1
    files = row.get("extra")
    for file in map(_object, files if isinstance(files, list) else []):
        if (text := _text(file.get("content"))) and not file.get("processedAsImages"):
            texts.append(f"--- File: {_text(file.get('name'))} ---\n{text}")
        else:
            notes[MEDIA] += 1
            media = True
    text = "\n\n".join(filter(None, texts))
    if role == "system" and first and text.strip() and not chat.system_prompt:
        chat.system_prompt = text
        return "", ""
    thought = role == "assistant" and not text and (row.get("reasoningContent") or row.get("thinking"))
    return ("assistant", "") if thought else _sided(role, text, media, notes)


def _chat(title: Any, made: Any, changed: Any, per_second: int = 1) -> Chat:
    made, changed = _time(made, per_second), _time(changed, per_second)
    known: dict[str, Any] = {
        "made": made if made is not None else changed,
        "changed": changed if changed is not None else made,
    }
    name = " ".join(_text(title)[:1_000].split())[:200]
    return Chat.model_validate({"title": name} | {key: at for key, at in known.items() if at is not None})


def _time(value: Any, per_second: int = 1) -> float | None:
    """Seconds since 1970, if `value` is a time."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value / per_second if 0 <= value < YEAR_10000 * per_second else None


def _id(value: Any) -> str:
    """An id, which is a number in old files; "" for none."""
    return "" if isinstance(value, bool) or not isinstance(value, str | int) else str(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
