"""Chats as ChatGPT exports them (conversations.json): a tree of messages, of which one branch is the chat.

An answer that was asked for again and a message that was edited are branches of their own: the one on screen
ends at `current_node` and is read from there up to the root. What ChatGPT keeps for itself, which nobody saw,
isn't part of it. Of what isn't text, `train.turns` says what becomes.
"""

from __future__ import annotations

from typing import Any

from core.errors import LeftOut

# What a message may hold beside text, as `train.turns` calls the kinds of parts.
_MEDIA = {"image_asset_pointer": "image", "audio_asset_pointer": "audio"}
_MEDIA |= {"real_time_user_audio_video_asset_pointer": "video", "video_container_asset_pointer": "video"}
# The summary of a thought and how long it took: the thought itself isn't in the export.
_SUMMARIES = ("thoughts", "reasoning_recap")
_PROFILE = ("user_profile", "user_instructions")


def is_export(row: Any) -> bool:
    """Whether a row is a chat of ChatGPT's export."""
    return isinstance(row, dict) and isinstance(row.get("mapping"), dict) and "current_node" in row


def turns_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns on the branch that was on screen, oldest first. Raises LeftOut for a broken tree."""
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
