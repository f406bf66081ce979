"""Which tokens are trained: in each assistant turn its words and its stop token, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from train.errors import TrainError
from train.example import Encoded, Example
from train.tokenizer import ChatTokenizer


def encode(tokenizer: ChatTokenizer, example: Example, assistant_only: bool = True) -> Encoded:
    """Token ids and mask of a row. Raises TrainError, and TemplateError for a chat that it refuses."""
    if example.text:
        return encode_text(tokenizer, example.text)
    encoded = encode_chat(tokenizer, example.messages)
    if not assistant_only:
        return Encoded(encoded.ids, [int(i != tokenizer.bos_id) for i in encoded.ids], encoded.messages)
    return encoded


def encode_chat(tokenizer: ChatTokenizer, messages: list[dict[str, str]]) -> Encoded:
    """Mark each assistant turn, from where the prompt for it ends to the first stop token, inclusive.

    The prompt for a turn is what the chat would send, so what is trained is what is chatted with; it must be
    the beginning of the whole chat, which a template that rewrites earlier turns breaks. Raises TrainError.
    """
    encoder = tokenizer.encoder
    text = tokenizer.render(messages, False)
    ids = encoder.encode(messages, add_generation_prompt=False)
    mask = [0] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if not text.startswith(tokenizer.render(messages[:turn], True)):
            raise TrainError(
                f"the chat template changes what comes before turn {turn + 1} once it is answered, so the "
                "model would be trained on a prompt that no chat sends; train on chats of one turn, or "
                "choose another base"
            )
        start = _common(ids, encoder.encode(messages[:turn]))
        until = _next_message(tokenizer, messages, turn, ids)
        end = next((i for i in range(start, until) if ids[i] in tokenizer.stop_ids), None)
        if end is None:
            raise TrainError(
                f"the chat template writes no stop token after the reply {message['content'][:40]!r}: the "
                "model would never learn to end one. Choose another base"
            )
        mask[start : end + 1] = [1] * (end + 1 - start)
    return Encoded(ids, mask, messages)


def encode_text(tokenizer: ChatTokenizer, text: str) -> Encoded:
    """All of a plain text is trained, but for the BOS; no end is put after it."""
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    ids = [*bos, *tokenizer.encoder.tokenize(text, False)]
    return Encoded(ids, [0] * len(bos) + [1] * (len(ids) - len(bos)), [])


def _next_message(
    tokenizer: ChatTokenizer, messages: list[dict[str, str]], turn: int, ids: Sequence[int]
) -> int:
    """Where the message after `turn` begins: a stop token from there on is another message's end."""
    if turn + 1 == len(messages):
        return len(ids)
    following = messages[turn + 1]
    other = "b" if following["content"].strip().startswith("a") else "a"
    chat = [*messages[: turn + 1], following | {"content": other}]
    return _common(ids, tokenizer.encoder.encode(chat, add_generation_prompt=False))


def cut(row: Encoded, longest: int) -> Encoded:
    """A plain text ends at `longest` tokens, as the seeds cut theirs; a chat stays whole, or is left out."""
    if row.messages or len(row.ids) <= longest:
        return row
    return Encoded(row.ids[:longest], row.mask[:longest], [])


def _common(whole: Sequence[int], prompt: Sequence[int]) -> int:
    """How long both are equal; less than the prompt where a token spans its end."""
    pairs = zip(whole, prompt, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole), len(prompt)))
