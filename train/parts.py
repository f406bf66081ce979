"""What a turn's content says: a text, parts as the APIs of the large services take them, or JSON.

A part is a text, or an object that says by its `type` what it is (OpenAI, Anthropic, Mistral), or by its only
key (Gemini). Texts are joined by a line break, as llama.cpp's server and vLLM join them; thoughts are told
apart. Any other part leaves the row out, by its name. An object that is no part is an answer in JSON.
"""

from __future__ import annotations

from typing import Any

from train.cells import cell_text, missing
from train.errors import LeftOut

TOOLS_USED = "tools are used, and a chat here has none"
PICTURES = "a picture, sound or video; only text is trained"
NO_TEXT = "a turn that is no text"

# The keys of one part: `type`, and what it holds.
_TEXT = frozenset(("text", "input_text", "output_text", "summary_text"))
_THOUGHT = frozenset(("thinking", "reasoning", "thought", "reasoning_content"))
_TOOL = frozenset(
    (
        *("tool_use", "tool_result", "tool_call", "tool_calls", "tool_response", "function_call"),
        *("function_response", "function_call_output", "server_tool_use", "functioncall", "functionresponse"),
        *("web_search_tool_result", "executablecode", "codeexecutionresult"),
    )
)
_MEDIA = frozenset(
    (
        *("image", "image_url", "input_image", "output_image", "audio", "audio_url", "input_audio"),
        *("output_audio", "video", "video_url", "input_video", "inlinedata", "inline_data", "media"),
    )
)
_OTHER = frozenset(
    (
        "file",
        "input_file",
        "filedata",
        "file_data",
        "document",
        "refusal",
        "redacted_thinking",
        "search_result",
    )
)
_KNOWN = _TEXT | _THOUGHT | _TOOL | _MEDIA | _OTHER
_UNTYPED = frozenset(("text", "functioncall", "functionresponse", "inlinedata", "filedata", "executablecode"))
_INSIDE = ("content", "value", "summary", "parts")  # where else than under its kind a part may hold its text


def read_content(value: Any) -> tuple[str, str]:
    """Text and thought of a turn's content. Raises LeftOut for a part that is neither."""
    if isinstance(value, dict):
        if isinstance(value.get("parts"), list):  # Gemini, and what ChatGPT exports
            return _joined(value["parts"])
        return _joined([value]) if _kind(value) in _KNOWN else (_plain(value), "")
    if not isinstance(value, list) or not any(isinstance(part, dict) and _kind(part) for part in value):
        return _plain(value), ""
    return _joined(value)


def _joined(parts: list[Any]) -> tuple[str, str]:
    texts, thoughts = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, dict):
            raise LeftOut(NO_TEXT, part)
        elif (kind := _kind(part)) in _TEXT:
            texts.append(_text_in(part, kind))
        elif kind in _THOUGHT:
            thoughts.append(_text_in(part, kind))
        elif kind in _TOOL:
            raise LeftOut(TOOLS_USED, f"a part of the type {kind}")
        elif kind in _MEDIA:
            raise LeftOut(PICTURES, f"a part of the type {kind}")
        elif kind:
            raise LeftOut(f"a part of the type {kind}; only text is trained", part)
        else:
            raise LeftOut(NO_TEXT, part)
    return "\n".join(texts), "\n".join(thoughts)


def _kind(part: dict[str, Any]) -> str:
    """What a part says that it is, in small letters; "" if it doesn't."""
    if isinstance(part.get("type"), str):
        return str(part["type"]).strip().lower()
    if part.get("thought") is True:  # Gemini
        return "thought"
    named = [key.lower() for key, value in part.items() if isinstance(key, str) and not missing(value)]
    return named[0] if len(named) == 1 and named[0] in _UNTYPED else ""


def _text_in(part: dict[str, Any], kind: str) -> str:
    """The text of a part; some put another object or list around it."""
    inside = next((part[key] for key in (kind, "text", *_INSIDE) if part.get(key) not in (None, True)), None)
    if isinstance(inside, dict):  # OpenAI's assistants
        inside = inside.get("value", inside.get("text"))
    if isinstance(inside, list):
        inside = "\n".join(filter(None, _joined(inside)))
    if not isinstance(inside, str):
        raise LeftOut(NO_TEXT, part)
    return inside


def _plain(value: Any) -> str:
    try:
        return cell_text(value)
    except UnicodeDecodeError:
        raise LeftOut(NO_TEXT, "bytes") from None
