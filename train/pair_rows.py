"""One row of preferences as two chats: what was asked, and the two answers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from core.errors import LeftOut
from train.cells import cell_text, missing
from train.examples import Example
from train.row_columns import further, in_front
from train.table import Row, say_columns, text_of
from train.turn_lists import AS_TURNS, ROLES, listed, parsed, written_out, written_pair
from train.turns import Chat, Messages, read_chat, read_content

SIDES: tuple[str, str] = ("chosen", "rejected")
RENDERED = re.compile(r"<\|[^<>|\s]{1,60}\|>|<start_of_turn>|\[INST\]")  # what templates begin turns with
SEVERAL = "answers of several turns: those of the assistant are compared, one after the other"


def pair_in(row: dict[str, Any]) -> tuple[Example, list[Chat]]:
    """The example of a row, and its two chats. Raises LeftOut."""
    for side in SIDES:
        if missing(row.get(side)) or row[side] in ([], {}):
            raise LeftOut(f"no {side} answer")
    if missing(row.get("prompt")) and (texts := _rendered(row)):
        return _of_texts(*texts), []
    chats = [_chat(row, side) for side in SIDES]
    messages = [chat.messages for chat in chats]
    shared = _shared(*messages)
    answers = [chat[shared:] for chat in messages]
    if _plain(answers[0]) == _plain(answers[1]):
        raise LeftOut("chosen and rejected are the same", repr(answers[0][:1] or messages[0][-1:]))
    if not all(answers):
        raise LeftOut("one of the two chats is the beginning of the other", repr(messages[0][-1]["content"]))
    if other := next((a[0] for a in answers if a[0]["role"] != "assistant"), None):
        said = f"{other['role']}: {other['content']}"
        raise LeftOut("chosen and rejected don't answer the same prompt", repr(said))
    if max(map(len, answers)) > 1:
        chats[0].changed[SEVERAL] = f"{len(answers[0])} and {len(answers[1])} turns"
    context = frozenset(at for at in range(shared) if messages[0][at]["role"] == "assistant")
    made = [
        Example(chat.messages, "", "", chat.untrained | context, pair=_texts(row, side, chat))
        for side, chat in zip(SIDES, chats, strict=True)
    ]
    return replace(made[0], rejected=made[1]), chats


def _chat(row: dict[str, Any], side: str) -> Chat:
    """The prompt with one answer. Raises LeftOut."""
    changed: dict[str, str] = {}
    prompt, cell = row.get("prompt"), row[side]
    asked, reply = _turns(prompt, changed), _turns(cell, changed)
    if asked and isinstance(prompt, str) and not asked[-1].get("content", "-"):
        del asked[-1]  # the heading that the answer comes after
    text = "" if asked else _text(row, changed)
    whole = bool(reply) and _begins(reply) != "assistant"
    if reply and whole:
        turns = reply
    elif asked:
        if _ends(asked) == "assistant":
            raise LeftOut("a prompt that ends with the assistant's words", asked[-1])
        turns = [*asked, *(reply or [_said(cell.strip() if isinstance(prompt, str) else cell)])]
    elif not text:
        raise LeftOut(
            "no prompt: neither a column of it, nor turns in the answers. Say which column it is: "
            + say_columns({"prompt": "COLUMN"})
        )
    else:
        turns = _headed(text, reply or [_said(cell)], changed)
    chat = read_chat([*in_front(row, "preferences", turns), *turns])
    chat.changed |= changed
    if whole and (asked or text):
        _check_prompt(chat.messages, read_prompt(asked) if asked else text.strip())
    return chat


def read_prompt(turns: list[Any]) -> Messages:
    """The turns of a prompt as a chat has them. Raises LeftOut."""
    return read_chat([*turns, {"role": "assistant", "content": "-"}]).messages[:-1]


def _check_prompt(messages: Messages, prompt: Messages | str) -> None:
    """Raise LeftOut where a chat isn't about the prompt beside it."""
    if isinstance(prompt, str):
        there = any(turn["role"] == "user" and turn["content"].strip() == prompt for turn in messages)
    else:
        own = [turn for turn in messages if turn["role"] != "system"]
        asked = [turn for turn in prompt if turn["role"] != "system"]
        there = own[: len(asked)] == asked
    if not there:
        raise LeftOut("the prompt isn't in the chats beside it", repr(prompt))


def _turns(cell: Any, changed: dict[str, str]) -> list[Any]:
    """The turns in a cell; none if it is a text, or an answer that is something else."""
    if isinstance(cell, str):
        found = written_out(cell)
        if found:
            changed[AS_TURNS] = repr(cell)
            return found
        cell = parsed(cell)
    cell = [cell] if isinstance(cell, dict) else cell
    turns = isinstance(cell, list) and bool(cell) and all(isinstance(turn, dict) for turn in cell)
    return listed(cell, changed) if turns and {"role", "from"} & {*cell[0]} else []


def _text(row: dict[str, Any], changed: dict[str, str]) -> str:
    """What a prompt that is a text asks, with what the row adds to it."""
    prompt = row.get("prompt")
    text = read_content(prompt)[0] if isinstance(prompt, list) else cell_text(prompt)
    more = further({key: value for key, value in row.items() if value is not prompt}, changed)
    return "\n\n".join(part for part in (text, more) if part.strip())


def _headed(prompt: str, reply: list[Any], changed: dict[str, str]) -> list[Any]:
    """A question and its answer; or the turns in them, where headings say whose they are."""
    answer = reply[0].get("content")
    found = written_pair(prompt, answer) if len(reply) == 1 and isinstance(answer, str) else []
    if not found:
        return [{"role": "user", "content": prompt}, *reply]
    changed[AS_TURNS] = repr(prompt)
    return [*found[:-1], reply[0] | found[-1]]


def _said(cell: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": cell_text(cell)}


def _begins(turns: list[Any]) -> str:
    """Whose turn is the first that isn't the system's."""
    return next((role for role in map(_role, turns) if role != "system"), "system")


def _ends(turns: list[Any]) -> str:
    return _role(turns[-1])


def _role(turn: Any) -> str:
    given = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    name = given.strip().rstrip(":").lower() if isinstance(given, str) else ""
    return ROLES.get(name, name)


def _plain(turns: Messages) -> list[str]:
    """What is said, without the blanks around it, which nobody prefers."""
    return [" ".join(text.split()) for turn in turns for text in turn.values()]


def _shared(one: Messages, other: Messages) -> int:
    """How many turns both chats begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _texts(row: Row, side: str, chat: Chat) -> tuple[str, str] | None:
    """Prompt and answer as they came, where they are two texts and nothing else."""
    prompt, answer = row.get("prompt"), row.get(side)
    if not isinstance(prompt, str) or not isinstance(answer, str):
        return None
    return (prompt, answer) if len(chat.messages) == 2 and not chat.changed else None


def _rendered(row: Row) -> list[str]:
    """Both texts, where they begin with the same that a template has rendered; else none."""
    texts = [text_of(row, side) if isinstance(row[side], str) else "" for side in SIDES]
    if not all(texts):
        return []
    return texts if RENDERED.search(_beginning(*texts)) else []


def _of_texts(chosen: str, rejected: str) -> Example:
    """The example of two texts that are rendered already."""
    if chosen == rejected:
        raise LeftOut("chosen and rejected are the same", repr(chosen))
    prompt = _beginning(chosen, rejected)
    one, other = (Example([], text, "", prompt=prompt, rendered=True) for text in (chosen, rejected))
    return replace(one, rejected=other)


def _beginning(one: str, other: str) -> str:
    """What both texts begin with, up to a blank or the end of a mark."""
    at = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return one[: max(one.rfind(end, 0, at) for end in (" ", "\n", ">", "]")) + 1]
