"""Rows of any data set whose columns give its format away.

| format | columns |
|---|---|
| messages | `messages`: turns with `role` (system, user, assistant) and `content` |
| sharegpt | `conversations`: turns with `from` (system, human, gpt) and `value` |
| alpaca | `instruction`, `output`, and `input` or `context` if there is more to say |
| prompt-completion | `prompt`, `completion`: two texts, or two lists of messages |
| text | `text`, where none of the others fits: they often bring their own rendering under this name |

Where none of these is there, other names are looked for (SPELLINGS): `response` as in Dolly, `question` and
`answer`, and more. `data.columns` of a recipe says it where nothing can be guessed. What other columns mean
is in `train.row_columns`, what turns can hold in `train.turns`, what is a missing value in `train.cells`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.errors import LeftOut, TrainError
from train.cells import cell_text, missing
from train.examples import Example, Loaded
from train.pair_rows import SIDES
from train.pairs import columns_of_pairs
from train.row_columns import Beside, further, in_front, refuse_labels, thought
from train.sections import Data
from train.switches import is_judgement
from train.table import Row, Table, group_of, say_columns, text_of
from train.turn_lists import AS_TURNS, are_texts, listed, parsed, written_out, written_pair
from train.turns import Chat, Messages, read_chat, read_content, trimmed

COLUMNS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
}
# Other names of these columns, by formats that are looked for in this order.
SPELLINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {
        "messages": (
            *("conversation", "dialogue", "dialog", "chat", "turns", "contents", "items", "data"),
            "chat_messages",  # as Claude exports them
        )
    },
    "alpaca": {"instruction": ("instruction",), "output": ("response", "answer", "completion")},
    "prompt-completion": {
        "prompt": ("prompt", "question", "query", "problem", "input", "user", "human", "q"),
        "completion": ("completion", "response", "answer", "output", "solution", "assistant", "gpt", "a"),
    },
}
# A question and its answer, as columns are called where people don't speak English.
LANGUAGES = (
    *(("frage", "antwort"), ("anfrage", "antwort"), ("pregunta", "respuesta"), ("question", "réponse")),
    *(("question", "reponse"), ("domanda", "risposta"), ("pergunta", "resposta"), ("vraag", "antwoord")),
    *(("pytanie", "odpowiedź"), ("вопрос", "ответ"), ("soru", "cevap"), ("问题", "回答"), ("问题", "答案")),
    *(("質問", "回答"), ("질문", "답변"), ("سؤال", "جواب"), ("प्रश्न", "उत्तर")),
)
WRITTEN_OUT = (
    "a chat that is written out, trained as text without the base's template; as chats: "
    f"{say_columns({'messages': 'text'})}"
)


def read_any(table: Table, data: Data, loaded: Loaded) -> None:
    """Read rows by the format that their columns give away. Raises TrainError if that is none or several."""
    layout, names = find_format(table, data)
    loaded.layout = layout
    as_text = layout == "text" or data.format == "text"
    if as_text and layout not in TEXTS:
        raise TrainError(
            f"format: text has no meaning for {table.where}, whose rows are {layout}; leave format out, or "
            "bring a column 'text'"
        )
    if layout == "text":
        refuse_labels(table, data)
    own = ("text",) if layout == "text" else COLUMNS[layout]
    beside = Beside(table, "text" if as_text else layout, (*own, *names.values(), data.group_by))
    seen = set[str]()
    for number, cells in enumerate(table.rows, 1):
        row = dict(cells) | {ours: cells.get(theirs) for ours, theirs in names.items()}
        chat = Chat()
        try:
            beside.check(row)
            split = beside.split(row)
            if as_text:
                text = TEXTS[layout](row)
                if written_out(text):
                    loaded.notice(WRITTEN_OUT, number, repr(text))
                example = Example([], text, group_of(row, data, text), rendered=True, split=split, row=number)
            else:
                chat, pair = _chat(row, layout)
                group = group_of(row, data, _first(chat))
                example = Example(
                    chat.messages, "", group, chat.untrained, pair=pair, split=split, row=number
                )
        except LeftOut as reason:
            loaded.leave_out(str(reason), number, reason.seen, reason.on_purpose)
            continue
        except UnicodeDecodeError:
            loaded.leave_out("bytes that are no text", number)
            continue
        loaded.tell(number, chat.changed, chat.not_used | beside.not_used(cells))
        add_once(example, seen, loaded)


def find_format(table: Table, data: Data) -> tuple[str, dict[str, str]]:
    """Name the format, and its columns where they have other names. Raises TrainError, with the columns."""
    there = {*table.columns}
    said = [name for name, columns in COLUMNS.items() if {*columns} <= {*data.columns}]
    if not data.columns and {*SIDES} <= there and not any(is_judgement(table.column(c)) for c in SIDES):
        raise _preferences(table, SIDES[0])
    found = said or [name for name, columns in COLUMNS.items() if {*columns} <= there]
    if "text" in data.columns and not said:
        return "text", {}
    if len(found) == 1:
        return found[0], {}
    if found:
        cure = {column: column for column in COLUMNS[found[0]]}
        raise _unclear(table, f"could be {' or '.join(found)}", cure)
    for name, columns in SPELLINGS.items():
        choices = {ours: [theirs for theirs in known if theirs in there] for ours, known in columns.items()}
        if name == "messages":
            choices["messages"] = [column for column in choices["messages"] if _hold_turns(table, column)]
        if not all(choices.values()):
            continue
        if several := next((found for found in choices.values() if len(found) > 1), None):
            cure = {ours: found[0] for ours, found in choices.items()}
            raise _unclear(table, f"could be {name} by {' or '.join(map(repr, several))}", cure)
        return name, {ours: theirs for ours, (theirs,) in choices.items()}
    for asked, replied in LANGUAGES:
        if {asked, replied} <= there:
            return "prompt-completion", {"prompt": asked, "completion": replied}
    if "text" in there:
        return "text", {}
    if pair := columns_of_pairs(there):
        raise _preferences(table, pair[0])
    known = "; ".join(", ".join(columns) for columns in COLUMNS.values())
    cure = dict(zip(COLUMNS["prompt-completion"], table.columns, strict=False))
    cure = cure if len(cure) > 1 else {"text": table.columns[0]}
    raise _unclear(table, f"are of no known format. Known: {known}; text", cure)


def _preferences(table: Table, chosen: str) -> TrainError:
    kind = "messages" if _hold_turns(table, chosen) else "completion"
    own = next((c for c in ("messages", "conversations", "completion") if c in table.columns), None)
    alone = f"; to train on the column {own!r} alone, say {say_columns({own: own})}" if own else ""
    return TrainError(
        f"{table.where} has pairs of a chosen and a rejected answer: preferences. To train on them, say "
        "DPOConfig in place of SFTConfig (with --data, add --set=DPOConfig.beta=0.1); to train on the chosen "
        f"answers alone, say {say_columns({kind: chosen})}{alone}"
    )


def _unclear(table: Table, problem: str, cure: dict[str, str]) -> TrainError:
    return TrainError(
        f"the columns of {table.where} ({', '.join(table.columns)}) {problem}; say which is which, such as "
        f"{say_columns(cure)}"
    )


def _hold_turns(table: Table, column: str) -> bool:
    """Whether the first cell that isn't empty is a list of turns, or the text of one."""
    cell = next((cell for row in table.rows if not missing(cell := row.get(column))), None)
    if isinstance(cell, str):
        cell = written_out(cell) or parsed(cell)
    if isinstance(cell, dict):
        return all(isinstance(column, list) for column in cell.values())
    if are_texts(cell):
        return column != "turns"  # of MT-Bench, whose texts are all the user's
    return (
        isinstance(cell, list) and bool(cell) and all(isinstance(turn, dict | list | tuple) for turn in cell)
    )


def add_once(example: Example, seen: set[str], loaded: Loaded) -> None:
    """Add the example, unless one with the same content came before."""
    content = example.text or repr((example.messages, sorted(example.untrained)))
    if content in seen:
        loaded.leave_out("the same as an earlier row", example.row, on_purpose=True)
        return
    seen.add(content)
    loaded.examples.append(example)


def instruction_turns(instruction: str, more: str, reply: str) -> Messages:
    """A chat of one turn; `more` is what Alpaca calls the input. Raises LeftOut."""
    if not instruction.strip():
        raise LeftOut("no instruction")
    if not reply.strip():
        raise LeftOut("no output")
    asked = "\n\n".join(part.strip() for part in (instruction, more) if part.strip())
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": trimmed(reply)}]


def _chat(row: dict[str, Any], layout: str) -> tuple[Chat, tuple[str, str] | None]:
    """The chat of a row; and its two texts, where it is a prompt and a completion and nothing else."""
    changed: dict[str, str] = {}
    turns = CHATS[layout](row, changed)
    front = in_front(row, layout, turns)
    chat = read_chat([*front, *turns])
    chat.changed |= changed
    texts = row.get("prompt"), row.get("completion")
    if layout != "prompt-completion" or len(chat.messages) != 2 or "reasoning_content" in chat.messages[1]:
        return chat, None
    prompt, completion = (text if isinstance(text, str) else "" for text in texts)
    return chat, (prompt, completion) if prompt and completion and not changed else None


def _first(chat: Chat) -> str:
    """What the user says first."""
    return next(turn["content"] for turn in chat.messages if turn["role"] == "user")


def _alpaca(row: Row, changed: dict[str, str]) -> list[Any]:
    turns = instruction_turns(text_of(row, "instruction"), further(row, changed), text_of(row, "output"))
    return _headed([turns[0], turns[1] | thought(row)], changed)


def _prompt_completion(row: dict[str, Any], changed: dict[str, str]) -> list[Any]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if missing(prompt) or missing(completion):
        raise LeftOut("a prompt or a completion is missing")
    asked, replied = _turns(prompt), _turns(completion)
    if asked is None:
        text = read_content(prompt)[0] if isinstance(prompt, list) else cell_text(prompt)
        parts = (text, further(row | {"input": None}, changed))
        asked = [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]
        if isinstance(completion, str):
            return _headed([*asked, {"role": "assistant", "content": completion} | thought(row)], changed)
    if replied is None:
        replied = [{"role": "assistant", "content": cell_text(completion)} | thought(row)]
    return [*asked, *replied]


def _headed(turns: list[Any], changed: dict[str, str]) -> list[Any]:
    """A question and its answer; or the turns in them, where they say by headings whose turn it is."""
    asked, reply = turns
    found = written_pair(asked["content"], reply["content"])
    if not found:
        return turns
    changed[AS_TURNS] = repr(asked["content"])
    return [*found[:-1], reply | found[-1]]


def _turns(cell: Any) -> list[Any] | None:
    """The turns in a cell, or None for a text, or for an object or a list that is an answer."""
    cell = [cell] if isinstance(cell, dict) else cell
    if (
        isinstance(cell, list)
        and cell
        and all(isinstance(t, dict) and ({"role", "from"} & {*t}) for t in cell)
    ):
        return cell
    return None


def _pair_text(row: Row) -> str:
    if not isinstance(row.get("prompt"), str) or not isinstance(row.get("completion"), str):
        raise LeftOut("a prompt or a completion that is no text")
    return _filled(text_of(row, "prompt") + text_of(row, "completion"))


def _filled(text: str) -> str:
    if not text.strip():
        raise LeftOut("no text")
    return text


CHATS: dict[str, Callable[[dict[str, Any], dict[str, str]], list[Any]]] = {
    "messages": lambda row, changed: listed(row.get("messages"), changed),
    "sharegpt": lambda row, changed: listed(row.get("conversations"), changed),
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
}
TEXTS: dict[str, Callable[[Row], str]] = {
    "text": lambda row: _filled(text_of(row, "text")),
    "prompt-completion": _pair_text,
}
