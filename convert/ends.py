"""Where a text begins and a reply ends, and its form: what the converter writes of it, put right.

gguf-py's SpecialVocab takes the BOS rule from tokenizer.json's post-processor, where transformers may go by
`add_bos_token`; conversion/llama.py has a rule of its own for 49,152 tokens; lists of `eos_token_id`, and all
of generation_config.json, are not read. llama.cpp knows some ends by name; it is told of others as its `eom`
and `eot` tokens, of which a file has room for one each.
The Unicode form of text is core/gguf_vocab.py's.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoTokenizer

from convert import llamacpp
from core.end_of_turn import end_of_turn
from core.errors import ConvertError
from core.files import read_json, whole
from core.gguf_model import GgufFile, read_gguf
from core.gguf_reader import read_metadata
from core.gguf_vocab import FORM_KEY, form_of
from core.machine import human_size
from core.templates import TemplateRenderer
from core.tokenizer import adds_bos, flat_numbers

ROOM = ("eom", "eot")
KEY = "tokenizer.ggml.{}"


def mend(gguf: Path, checkpoint: Path) -> None:
    """Make a GGUF begin and end as the checkpoint that it was converted from, with text in the same form.

    Raises ConvertError.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConvertError(f"transformers can't load the tokenizer of {checkpoint}: {reason}") from None
    found = differences(read_gguf(gguf), read_metadata(gguf), tokenizer, _ends(checkpoint, tokenizer))
    changes: dict[str, bool | int | str] = {KEY.format(name): value for name, value in found.items()}
    if form := _form(tokenizer):
        changes[FORM_KEY] = form
    if not changes:
        return
    size, free = gguf.stat().st_size, shutil.disk_usage(gguf.parent).free
    if size > free:
        raise ConvertError(
            f"the 16-bit GGUF has to be written once more, with another {' and '.join(changes)}: "
            f"{human_size(size)} in {gguf.parent}, where {human_size(free)} are free"
        )
    given: list[str | Path] = []
    for name, value in changes.items():
        kind = {bool: "bool", int: "int", str: "str"}[type(value)]
        given += ["--override-kv", f"{name}={kind}:{value if kind == 'str' else str(value).lower()}"]
    with whole(gguf) as partial:
        llamacpp.run([llamacpp.tool("llama-quantize"), *given, gguf, partial, "COPY"])


def _form(tokenizer: Any) -> str:
    """The Unicode form of its text; a line says what llama.cpp doesn't do with it."""
    form = form_of(tokenizer)
    if form is None:
        tqdm.write(
            "note: the tokenizer changes text before it cuts it, in a way that llama.cpp and the chat don't "
            "know; verification compares what comes of it"
        )
    elif form:
        tqdm.write(
            f"note: the tokenizer brings text into the form {form}, say accents that stand apart from their "
            "letters. The chat does so too; in other programs of llama.cpp such text gets other ids"
        )
    return form or ""


def differences(
    file: GgufFile, metadata: Mapping[str, Any], tokenizer: Any, ends: Iterable[int]
) -> dict[str, bool | int]:
    """What a file must say instead, by key; says which ends it can't hold. `ends` are the checkpoint's."""
    vocab, changes = file.vocab, dict[str, bool | int]()
    adds = adds_bos(tokenizer)
    if adds and vocab.bos_id != tokenizer.bos_token_id:
        changes["bos_token_id"] = tokenizer.bos_token_id
    if vocab.add_bos != adds:
        changes["add_bos_token"] = adds
    if metadata.get(KEY.format("add_eos_token")):  # neither training nor the chat ends a prompt with it
        changes["add_eos_token"] = False
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    listed = [i for i in ends if i < vocab.size]
    if listed and vocab.eos_id not in listed:  # where the file has none, llama.cpp takes token 11 or 2
        changes["eos_token_id"] = next((i for i in listed if i in added), listed[0])
    turn = _end_of_turn(file, tokenizer)
    lacking = [i for i in dict.fromkeys([*turn, *listed]) if i not in vocab.eog_ids]
    lacking = [i for i in lacking if i != changes.get("eos_token_id")]
    free = [name for name in ROOM if KEY.format(f"{name}_token_id") not in metadata]
    for i in lacking:
        if i in added and free:
            changes[f"{free.pop(0)}_token_id"] = i
        else:
            why = "a GGUF has no room for it" if i in added else "it is ordinary text"
            named = f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})"
            tqdm.write(f"note: the configuration ends replies at {named}, and the chat doesn't: {why}")
    return changes


def _ends(checkpoint: Path, tokenizer: Any) -> list[int]:
    """The ids that end a reply by the tokenizer, config.json and generation_config.json."""
    paths = [checkpoint / name for name in ("config.json", "generation_config.json")]
    given = [read_json(path).get("eos_token_id") for path in paths if path.is_file()]
    return flat_numbers([tokenizer.eos_token_id, *given])


def _end_of_turn(file: GgufFile, tokenizer: Any) -> list[int]:
    """The token with which the template ends a reply, if llama.cpp doesn't know it for an end."""
    if not file.chat_template:
        return []
    renderer, template = TemplateRenderer(), file.chat_template
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    try:
        found = end_of_turn(lambda chat, ask: renderer.render(template, chat, ask, bos, eos), file.vocab)
    finally:
        renderer.close()
    return [] if found.token is None else [found.token]
