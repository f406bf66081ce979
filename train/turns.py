"""Turns of any spelling as a chat that people have: perhaps a system message, then user and assistant.

Read where the meaning is clear: other names of roles and keys, content in parts, an object as content,
thoughts, turns that aren't to be trained, several turns in a row of the same side (joined), a greeting before
the user's first turn (left out: a chat begins with the user), turns after the last reply (cut off). What is
changed is counted. What has no place in a chat of text (tools, pictures) leaves the row out, with a reason.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from train.cells import cell_text, empty, missing, number, writable

Messages = list[dict[str, str]]

# How the roles are called in the wild.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "model", "ai", "bot", "chatbot", "bard", "bing"), "assistant"
    ),
    **dict.fromkeys(
        (
            "tool",
            "function",
            "function_call",
            "function_response",
            "tool_call",
            "tool_response",
            "observation",
        ),
        "tool",
    ),
}
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
THOUGHTS = ("reasoning_content", "thinking", "reasoning", "thought", "thoughts")
# A turn is trained or not: OpenAI's weight, Axolotl's train, ms-swift's loss, torchtune's masked, and others.
WEIGHTS = ("weight", "loss_weight", "loss_scale")
TRAINED = (*WEIGHTS, "train", "training", "trained", "trainable", "train_on_turn", "loss")
NOT_TRAINED = ("masked", "mask", "ignore", "ignored")
TOOLS = ("tools", "functions", "tool_calls", "function_call", "tool_responses", "tool_results")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("thinking", "reasoning")
TOOL_PARTS = ("tool_use", "tool_result", "tool_call", "function_call")

UNREAL = "tools are used, and a chat here has none"
PICTURES = "a picture, sound or video; only text is trained"


class LeftOut(Exception):
    """Why a row is no example, what was seen of it, and whether its author wants that."""

    def __init__(self, reason: str, seen: object = "", on_purpose: bool = False) -> None:
        super().__init__(reason)
        self.seen = seen if isinstance(seen, str) and not seen else repr(seen)
        self.on_purpose = on_purpose


@dataclass
class Chat:
    """`untrained` are the places of replies that are context only; the rest is for the count."""

    messages: Messages = field(default_factory=list)
    untrained: frozenset[int] = frozenset()
    changed: dict[str, str] = field(default_factory=dict)  # reason, what was seen
    not_used: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Turn:
    role: str
    content: str
    thought: str = ""
    trained: bool = True

    def message(self) -> dict[str, str]:
        thought = {"reasoning_content": self.thought} if self.thought else {}
        return {"role": self.role, "content": self.content} | thought


def read_chat(turns: Any) -> Chat:
    """Turns as a chat that ends with the assistant. Raises LeftOut."""
    chat = Chat()
    found = [_turn(turn, chat) for turn in listed(turns)]
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


def listed(turns: Any) -> list[Any]:
    """The list that `turns` is, or that its text or its columns stand for."""
    given = turns
    if isinstance(turns, str):
        turns = parsed(turns)
    if isinstance(turns, dict) and all(isinstance(column, list) for column in turns.values()):
        if len(set(map(len, turns.values()))) != 1:
            raise LeftOut("no turns", given)
        turns = [dict(zip(turns, cells, strict=True)) for cells in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list) or not turns:
        raise LeftOut("no turns", "" if empty(given) else given)
    return turns


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


def _turn(turn: Any, chat: Chat) -> _Turn:
    if not isinstance(turn, dict):
        raise LeftOut("a turn that is no object", turn)
    there = {str(key).strip().lower(): value for key, value in turn.items() if not missing(value)}
    if any(not empty(there.get(key)) for key in TOOLS):
        raise LeftOut(UNREAL, next(key for key in TOOLS if not empty(there.get(key))))
    if any(not empty(there.get(key)) for key in MEDIA):
        raise LeftOut(PICTURES, next(key for key in MEDIA if not empty(there.get(key))))
    given = next((there[key] for key in ROLE_KEYS if key in there), None)
    role = ROLES.get(given.strip().rstrip(":").lower()) if isinstance(given, str) else None
    if role is None:
        raise LeftOut("a role other than system, user and assistant", "" if given is None else given)
    if role == "tool":
        raise LeftOut(UNREAL, f"the role {given}")
    content, thought = _content(next((there[key] for key in CONTENT_KEYS if key in there), None))
    if role == "assistant":
        thought = _thought(there) or thought
    trained = role != "assistant" or _trained(there)
    if role != "assistant":
        asked = [key for key in TRAINED if key in there and number(there[key])]
        chat.not_used |= {f"{key!r} of a turn that isn't the assistant's" for key in asked}
    thoughts = THOUGHTS if role == "assistant" else ()
    known = {*ROLE_KEYS, *CONTENT_KEYS, *TRAINED, *NOT_TRAINED, *TOOLS, *MEDIA, *thoughts}
    chat.not_used |= {f"{key!r} of a turn" for key in there if key not in known and not empty(there[key])}
    return _Turn(role, trimmed(content), trimmed(thought), trained)


def _content(value: Any) -> tuple[str, str]:
    """Text and thought of a turn's content: a text, parts, or a value that is JSON."""
    if not isinstance(value, list) or not value or not all(map(_is_part, value)):
        return _text(value), ""
    texts, thoughts = [], []
    for part in value:
        kind = part.get("type", "text")
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in THOUGHT_PARTS:
            thoughts.append(_content(next((part[k] for k in (kind, "text") if part.get(k)), None))[0])
        elif kind in TEXT_PARTS:
            raise LeftOut("a turn that is no text", part)
        elif kind in TOOL_PARTS:
            raise LeftOut(UNREAL, f"a part of the type {kind}")
        else:
            raise LeftOut(PICTURES, f"a part of the type {kind}")
    return "\n".join(texts), "\n".join(thoughts)  # as llama.cpp's server and vLLM join parts


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and (isinstance(value.get("type"), str) or set(value) == {"text"})


def _text(value: Any) -> str:
    try:
        return cell_text(value)
    except UnicodeDecodeError:
        raise LeftOut("a turn that is no text", "bytes") from None


def _thought(there: dict[str, Any]) -> str:
    """What the assistant thought before the reply."""
    found = [there[key] for key in THOUGHTS if not empty(there.get(key))]
    if any(not isinstance(thought, str) for thought in found):
        raise LeftOut("a thought that is no text", next(t for t in found if not isinstance(t, str)))
    return found[0] if found else ""


def _trained(there: dict[str, Any]) -> bool:
    return all(wanted(key, there[key]) for key in (*TRAINED, *NOT_TRAINED) if key in there)


def wanted(key: str, value: Any) -> bool:
    """Whether a weight or a switch says that something is to be trained. Raises LeftOut for a share."""
    asked = number(value)
    if asked not in (0, 1):
        raise LeftOut("a weight other than 0 and 1", {key: value})
    return bool(asked) != (key in NOT_TRAINED)


def _joined(turns: Iterable[_Turn], chat: Chat) -> list[_Turn]:
    """The turns with those of one side in a row as one."""
    joined: list[_Turn] = []
    for turn in turns:
        if not joined or joined[-1].role != turn.role:
            if turn.role == "system" and joined:
                raise LeftOut("a system message in the middle of the chat", turn.content)
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
    first = int(turns[0].role == "system")
    if turns[first].role == "assistant":
        if len(turns) == first + 1:
            raise LeftOut("no turn of the user")
        chat.changed["a greeting before the user's first turn left out"] = repr(turns[first].content)
        return [*turns[:first], *turns[first + 1 :]]
    return turns


def trimmed(text: str) -> str:
    """`text` without empty lines around it; the first line's indentation, which code needs, stays."""
    return writable(text).strip("\n").rstrip()
