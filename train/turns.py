"""Turns of any spelling as a chat that people have: user and assistant, perhaps with system messages.

Read where the meaning is clear: other names of roles and keys, content in parts, an object as content,
thoughts, turns that aren't to be trained, several turns in a row of the same side (joined), a greeting before
the user's first turn (left out: a chat begins with the user), turns after the last reply (cut off). What is
changed is counted. What has no place in a chat of text (tools, pictures) leaves the row out, with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from core.errors import LeftOut
from train.cells import cell_text, empty, missing, number, writable
from train.switches import NOT_TRAINED, TRAINED, wanted
from train.turn_lists import CONTENT_KEYS, ROLE_KEYS, ROLES

Messages = list[dict[str, str]]

THOUGHTS = ("reasoning_content", "thinking", "reasoning", "thought", "thoughts")
TOOLS = ("tools", "functions", "tool_calls", "function_call", "tool_responses", "tool_results")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")


@dataclass
class Chat:
    """`untrained` are the places of replies that are context only; the rest is for the count."""

    messages: Messages = field(default_factory=list)
    untrained: frozenset[int] = frozenset()
    changed: dict[str, str] = field(default_factory=dict)  # reason, what was seen
    not_used: dict[str, str] = field(default_factory=dict)  # key, the first value


@dataclass(frozen=True)
class _Turn:
    role: str
    content: str
    thought: str = ""
    trained: bool = True

    def message(self) -> dict[str, str]:
        thought = {"reasoning_content": self.thought} if self.thought else {}
        return {"role": self.role, "content": self.content} | thought


def read_chat(turns: list[Any]) -> Chat:
    """Turns as a chat that ends with the assistant. Raises LeftOut."""
    chat = Chat()
    found = [_turn(turn, chat) for turn in turns]
    end = next((at for at in range(len(found), 0, -1) if found[at - 1].role == "assistant"), 0)
    if not end:
        raise LeftOut("no reply of the assistant")
    if end < len(found):
        chat.changed["turns after the last reply cut off"] = repr(found[end].content)
    found = [turn for turn in found[:end] if turn.role != "system" or turn.content.strip()]
    for turn in found:
        if not turn.content.strip():
            raise LeftOut("an empty turn", f"of the {turn.role}")
    found = _greeted(_joined(found, chat), chat)
    chat.messages = [turn.message() for turn in found]
    replies = [at for at, turn in enumerate(found) if turn.role == "assistant"]
    chat.untrained = frozenset(at for at in replies if not found[at].trained)
    if len(chat.untrained) == len(replies):
        raise LeftOut("no reply that is to be trained", on_purpose=True)
    return chat


def _turn(turn: Any, chat: Chat) -> _Turn:
    if not isinstance(turn, dict):
        raise LeftOut("a turn that is no object", turn)
    there = {str(key).strip().lower(): value for key, value in turn.items() if not missing(value)}
    if any(not empty(there.get(key)) for key in TOOLS):
        raise LeftOut(TOOLS_USED, next(key for key in TOOLS if not empty(there.get(key))))
    if any(not empty(there.get(key)) for key in MEDIA):
        raise LeftOut(PICTURES, next(key for key in MEDIA if not empty(there.get(key))))
    given = next((there[key] for key in ROLE_KEYS if key in there), None)
    role = ROLES.get(given.strip().rstrip(":").lower()) if isinstance(given, str) else None
    if role is None:
        raise LeftOut("a role other than system, user and assistant", turn if given is None else given)
    if role == "tool":
        raise LeftOut(TOOLS_USED, f"the role {given}")
    name = next((key for key in CONTENT_KEYS if key in there), "")
    content, thought = read_content({"parts": there[name]} if name == "parts" else there.get(name))
    if role == "assistant":
        thought = _thought(there) or thought
    elif thought:
        raise LeftOut(f"a thought of the {role}", thought)
    trained = role != "assistant" or _trained(there)
    known = {*ROLE_KEYS, name, *NOT_TRAINED, *TOOLS, *MEDIA}
    known |= (
        {*TRAINED, *THOUGHTS} if role == "assistant" else {key for key in TRAINED if not _is_on(there, key)}
    )
    for key, value in there.items():
        if key not in known and not empty(value) and value != there.get(name):
            whose = "" if key not in TRAINED else " that isn't the assistant's"
            chat.not_used.setdefault(f"{key!r} of a turn{whose}", repr(value))
    return _Turn(role, trimmed(content), trimmed(thought), trained)


def _thought(there: dict[str, Any]) -> str:
    """What the assistant thought before the reply."""
    found = [there[key] for key in THOUGHTS if not empty(there.get(key))]
    if any(not isinstance(thought, str) for thought in found):
        raise LeftOut("a thought that is no text", next(t for t in found if not isinstance(t, str)))
    return found[0] if found else ""


def _is_on(there: dict[str, Any], key: str) -> bool:
    """Whether a switch asks for the training of its turn."""
    return bool(number(there.get(key)))


def _trained(there: dict[str, Any]) -> bool:
    return all(wanted(key, there[key]) for key in (*TRAINED, *NOT_TRAINED) if key in there)


def _joined(turns: Iterable[_Turn], chat: Chat) -> list[_Turn]:
    """The turns with those of one side in a row as one."""
    joined: list[_Turn] = []
    for turn in turns:
        if not joined or joined[-1].role != turn.role:
            joined.append(turn)
            continue
        last = joined[-1]
        if turn.thought or last.trained != turn.trained:
            raise LeftOut("two replies in a row, of which the second has a thought or isn't trained alike")
        chat.changed[f"turns of the {turn.role} in a row joined"] = repr(turn.content)
        joined[-1] = replace(last, content=f"{last.content}\n\n{turn.content}")
    return joined


def _greeted(turns: list[_Turn], chat: Chat) -> list[_Turn]:
    """The turns without what the assistant says before the user's first turn: nobody asked."""
    first = next((at for at, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise LeftOut("no turn of the user")
    greetings = [turn for turn in turns[:first] if turn.role == "assistant"]
    if not greetings:
        return turns
    chat.changed["a greeting before the user's first turn left out"] = repr(greetings[0].content)
    system = [turn for turn in turns[:first] if turn.role == "system"]
    return [*_joined(system, chat), *turns[first:]]


def trimmed(text: str) -> str:
    """`text` without empty lines around it; the first line's indentation, which code needs, stays."""
    return writable(text).strip("\n").rstrip()


TOOLS_USED = (
    "tools are used, and a chat here has none; to train them, render such rows with the model's own template "
    "beforehand (apply_chat_template) and give them as columns prompt and completion"
)
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
            return _joined_parts(value["parts"])
        return _joined_parts([value]) if _kind(value) in _KNOWN else (_plain(value), "")
    if not isinstance(value, list) or not any(isinstance(part, dict) and _kind(part) for part in value):
        return _plain(value), ""
    return _joined_parts(value)


def _joined_parts(parts: list[Any]) -> tuple[str, str]:
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
        inside = "\n".join(filter(None, _joined_parts(inside)))
    if not isinstance(inside, str):
        raise LeftOut(NO_TEXT, part)
    return inside


def _plain(value: Any) -> str:
    try:
        return cell_text(value)
    except UnicodeDecodeError:
        raise LeftOut(NO_TEXT, "bytes") from None
