"""Asks llama.cpp about a GGUF's vocabulary, in a process with limits: `python -m core.vocab_worker FILE`.

No weights are read. What llama.cpp logs as an error goes to standard output in llama-server's form, and the
answer is one JSON object on the last line. With `--tokenize`, each line of its input, a JSON list of a text
and whether special tokens are parsed in it, is answered with a line of ids. It ends when its input closes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from queue import SimpleQueue
from typing import Any

import llama_cpp

from core.worker_limits import limit_this_process

MEMORY_BYTES = 2 * 2**30  # above what the process takes when it starts; 262,144 tokens need 0.1 GiB
ERROR = 4  # ggml_log_level


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _print_errors(level: int, text: bytes, _: Any) -> None:
    if level == ERROR:
        _say(f"0 E {text.decode('utf-8', 'replace').rstrip()}")


def main(path: str, tokenize: bool = False) -> int:
    """Print the answer for the GGUF at `path`; return 1 where llama.cpp can't load it."""
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())  # for what the C++ runtime says of a crash
    limit_this_process(MEMORY_BYTES)
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_input, args=(lines,), daemon=True).start()
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_print_errors, None)  # from here on: a GPU that is out of reach is no reason
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return 1
    vocab = llama_cpp.llama_model_get_vocab(model)
    _say(json.dumps(_answer(vocab)))
    while tokenize:
        text, special = json.loads(lines.get())
        _say(json.dumps(_ids(vocab, text.encode(), special)))
    return 0


def _ids(vocab: Any, text: bytes, special: bool) -> list[int]:
    room = len(text) + 8  # a token has at least a byte, but for a space in front
    ids = (llama_cpp.llama_token * room)()
    found = llama_cpp.llama_tokenize(vocab, text, len(text), ids, room, False, special)
    return list(ids[: max(0, found)])


def _answer(vocab: Any) -> dict[str, object]:
    """The fields of `core.gguf_vocab.Vocab`; its `control` without the tokens in `user_defined`."""
    size = llama_cpp.llama_vocab_n_tokens(vocab)
    attributes = [llama_cpp.llama_vocab_get_attr(vocab, i) for i in range(size)]
    eog = [i for i in range(size) if llama_cpp.llama_vocab_is_eog(vocab, i)]

    def texts(ids: list[int]) -> dict[str, int]:
        return {_text(vocab, i): i for i in ids}

    def having(wanted: int) -> list[int]:
        return [i for i, attribute in enumerate(attributes) if attribute & wanted]

    special = having(llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN)
    # A default id may lie outside a small vocabulary; none is -1.
    bos, eos = (
        i if 0 <= i < size else None
        for i in (llama_cpp.llama_vocab_bos(vocab), llama_cpp.llama_vocab_eos(vocab))
    )
    return {
        "size": size,
        "bos_id": bos,
        "eos_id": eos,
        "bos": "" if bos is None else _text(vocab, bos),
        "eos": "" if eos is None else _text(vocab, eos),
        "add_bos": llama_cpp.llama_vocab_get_add_bos(vocab),
        "control": texts(special + eog),
        "user_defined": texts(having(llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED)),
        "eog_ids": eog,
    }


def _text(vocab: Any, token: int) -> str:
    text: bytes = llama_cpp.llama_vocab_get_text(vocab, token)
    return text.decode("utf-8", "backslashreplace")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _read_input(lines: SimpleQueue[bytes]) -> None:
    # Not sys.stdin: Python can't end while a thread reads that.
    with open(0, "rb", closefd=False) as given:
        for line in given:
            lines.put(line)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--tokenize" in sys.argv[2:]))
