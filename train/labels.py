"""Which tokens are trained, as a mask: in each assistant turn its words and its stop token, nothing else.

`train.batches.collate` makes a batch's labels of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.errors import TrainError
from core.tokenizer import ChatTokenizer
from train.examples import Encoded, Example

Messages = list[dict[str, str]]


def encode(tokenizer: ChatTokenizer, example: Example, assistant_only: bool = True) -> list[Encoded]:
    """Token ids and mask of a row: one sequence, or several where the template edits earlier replies.

    Raises TrainError, and TemplateError for a chat that the template refuses.
    """
    if example.text:
        return [encode_text(tokenizer, example)]
    sequences = encode_chat(tokenizer, example.messages, example.untrained)
    return sequences if assistant_only else _all_trained(tokenizer, sequences, example)


@dataclass(frozen=True)
class _Reply:
    """A chat up to and with a reply, and the places of the reply's first token and of its stop token."""

    ids: list[int]
    start: int
    end: int

    def in_(self, ids: Sequence[int]) -> bool:
        """Whether `ids` begin with the chat up to the stop token."""
        return self.ids[: self.end + 1] == list(ids[: self.end + 1])


def encode_chat(
    tokenizer: ChatTokenizer, messages: Messages, untrained: frozenset[int] = frozenset()
) -> list[Encoded]:
    """Mark each assistant turn, from where the prompt for it ends to the first stop token, inclusive.

    The prompt for a turn is what the chat would send, so what is trained is what is chatted with. Turns
    share a sequence as long as a reply stays in the chat as it was written. Where the template drops its
    thought later, or edits it otherwise, the turns after it are another sequence, in which it isn't trained
    again. `untrained` replies are context only. Raises TrainError.
    """
    sequences: list[Encoded] = []
    last: _Reply | None = None
    for turn, message in enumerate(messages):
        if message["role"] != "assistant" or turn in untrained:
            continue
        chat = messages[: turn + 1]
        reply = _reply(tokenizer, chat)
        mask = [int(reply.start <= at <= reply.end) for at in range(len(reply.ids))]
        told = [] if tokenizer.thoughts.composes(chat) else chat
        replies = sum(other["role"] == "assistant" for other in told)
        if last and last.in_(reply.ids):
            before = sequences.pop()
            mask[: last.end + 1] = before.mask[: last.end + 1]
            trained = 1 + sum(m["role"] == "assistant" for m in before.messages) - before.untrained
            sequences.append(Encoded(reply.ids, mask, told, replies - trained))
        else:
            sequences.append(Encoded(reply.ids, mask, told, max(0, replies - 1)))
        if turn + 1 < len(messages):
            _check_end(tokenizer, messages[: turn + 2], reply)
        last = reply
    if sequences:
        return sequences
    ids = tokenizer.encoder.encode(messages, add_generation_prompt=False)
    return [Encoded(ids, [0] * len(ids), messages, sum(m["role"] == "assistant" for m in messages))]


def _reply(tokenizer: ChatTokenizer, chat: Messages) -> _Reply:
    """Find the reply that ends `chat`."""
    turn = len(chat)
    if not tokenizer.render(chat, False).startswith(tokenizer.render(chat[:-1], True)):
        raise TrainError(
            f"the chat template changes what comes before turn {turn} once it is answered, so the "
            "model would be trained on a prompt that no chat sends; train on chats of one turn, or "
            "choose another base"
        )
    ids = tokenizer.encoder.encode(chat, add_generation_prompt=False)
    start = _common(ids, tokenizer.encoder.encode(chat[:-1]))
    end = next((at for at in range(start, len(ids)) if ids[at] in tokenizer.stop_ids), None)
    if end is None:
        raise _endless(chat[-1])
    return _Reply(ids, start, end)


def _check_end(tokenizer: ChatTokenizer, chat: Messages, reply: _Reply) -> None:
    """Raise TrainError if the reply before the last turn of `chat` isn't told from that turn any more.

    Another control token than the stop token will do: gpt-oss has one for the end of earlier replies.
    """
    control = {*tokenizer.encoder.control.values()}
    encode = tokenizer.encoder.encode
    ids = encode(chat, add_generation_prompt=False)
    if reply.in_(ids):
        return
    start = _common(ids, reply.ids[: reply.start])
    # Where the last turn begins: a stop token from there on is another message's end.
    other = "b" if chat[-1]["content"].strip().startswith("a") else "a"
    until = _common(ids, encode([*chat[:-1], chat[-1] | {"content": other}], add_generation_prompt=False))
    if control.isdisjoint(ids[start:until]):
        raise _endless(chat[-2])


def _endless(reply: dict[str, str]) -> TrainError:
    return TrainError(
        f"the chat template writes no stop token after the reply {reply['content'][:40]!r}: the model would "
        "never learn to end one. Choose another base"
    )


def _all_trained(tokenizer: ChatTokenizer, sequences: Sequence[Encoded], example: Example) -> list[Encoded]:
    """The sequences with every token trained once, but for the BOS and the replies that are context only."""
    context = [_reply(tokenizer, example.messages[: turn + 1]) for turn in sorted(example.untrained)]
    found: list[Encoded] = []
    for row in sequences:
        shared = _common(row.ids, found[-1].ids) if found else 0
        mask = [int(at >= shared and i != tokenizer.bos_id) for at, i in enumerate(row.ids)]
        for reply in context:
            if reply.in_(row.ids):
                mask[reply.start : reply.end + 1] = [0] * (reply.end + 1 - reply.start)
        found.append(replace(row, mask=mask))
    return found


def encode_text(tokenizer: ChatTokenizer, example: Example) -> Encoded:
    """All of a plain text is trained, but for the BOS and its prompt; no end is put after it."""
    ids = _text_ids(tokenizer, example.text, example.rendered)
    start = _common(ids, _text_ids(tokenizer, example.prompt, example.rendered)) if example.prompt else 0
    begun = ids[:1] == [tokenizer.bos_id]
    return Encoded(ids, [int(at >= max(start, begun)) for at in range(len(ids))], [])


def _text_ids(tokenizer: ChatTokenizer, text: str, rendered: bool) -> list[int]:
    """The ids of a text with one BOS, if the tokenizer adds one; `rendered`: control tokens are tokens."""
    ids = list(tokenizer.encoder.tokenize(text, rendered))
    bos = tokenizer.bos_id
    while bos is not None and ids[:2] == [bos, bos]:
        del ids[0]
    return [bos, *ids] if bos is not None and tokenizer.adds_bos and ids[:1] != [bos] else ids


def cut(row: Encoded, example: Example, longest: int) -> Encoded:
    """A plain text ends at `longest` tokens; a chat stays whole, or is left out."""
    if not example.text or example.prompt or len(row.ids) <= longest:
        return row
    return Encoded(row.ids[:longest], row.mask[:longest], [])


def _common(whole: Sequence[int], prompt: Sequence[int]) -> int:
    """How long both are equal; less than the prompt where a token spans its end."""
    pairs = zip(whole, prompt, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole), len(prompt)))
