"""Our perplexity of plain text against llama-perplexity's: two programs that must agree about one file.

Same text, same chunks, same scored half of each chunk (llama.cpp's tools/perplexity/perplexity.cpp). The tool
parses no special tokens, so only plain text compares.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path

import numpy as np

from chat.gguf_file import read_gguf
from chat.llama_model import LlamaModel
from chat.machine import idle_thread_count
from convert.errors import ConvertError
from convert.llamacpp import run, tool
from convert.rows import PLAIN_CHATS
from convert.verify.check import Check
from convert.verify.loss import log_softmax
from convert.verify.thresholds import CROSS_CHECK

CHUNK, CHUNKS = 256, 2  # the tool wants two chunks at least; more tell nothing more
_ESTIMATE = re.compile(r"Final estimate: PPL = ([\d.]+|nan|inf)")


def check_cross(gguf: Path) -> list[Check]:
    """Compare both perplexities of the project's own chats. Raises ChatError."""
    text = plain_text()
    ours = our_perplexity(gguf, text)
    try:
        program = tool("llama-perplexity")
    except ConvertError as error:
        return [Check("cross-check", "n/a", f"{ours:.3f}", str(error))]
    return [agreement(ours, tool_perplexity(program, gguf, text))]


def agreement(ours: float, theirs: float) -> Check:
    """Judge two perplexities of the same text by the same file."""
    verdict = CROSS_CHECK.judge(abs(ours - theirs) / theirs)
    figure = f"perplexity {ours:.3f} here, {theirs:.3f} by llama-perplexity"
    return Check("cross-check", verdict, figure, CROSS_CHECK.reason(verdict))


def plain_text() -> str:
    """The project's own chats as prose."""
    chats = [json.loads(line) for line in PLAIN_CHATS.read_text(encoding="utf-8").splitlines()]
    return "\n\n".join(message["content"] for chat in chats for message in chat)


def our_perplexity(gguf: Path, text: str) -> float:
    """Perplexity of the second half of each chunk, as the tool counts it: each chunk begins with BOS where
    the vocabulary has one, in the place of its first token, and its last token is not predicted from."""
    vocab = read_gguf(gguf).vocab
    model = LlamaModel(gguf, CHUNK, idle_thread_count(), [])
    try:
        begin = [vocab.bos_id] if vocab.add_bos and vocab.bos_id is not None else []
        ids = begin + model.tokenize(text, False)
        if len(ids) < CHUNK * CHUNKS:
            raise ConvertError(f"{PLAIN_CHATS.name} has {len(ids)} tokens; {CHUNK * CHUNKS} are needed")
        losses = []
        for start in range(0, CHUNK * CHUNKS, CHUNK):
            chunk = begin + ids[start + len(begin) : start + CHUNK]
            for position, logits in model.logits(chunk, set(range(CHUNK // 2, CHUNK - 1))):
                losses.append(-float(log_softmax(np.ctypeslib.as_array(logits))[chunk[position + 1]]))
    finally:
        model.close()
    return math.exp(min(math.fsum(losses) / len(losses), 700))


def tool_perplexity(program: Path, gguf: Path, text: str) -> float:
    """What llama-perplexity says. Raises ConvertError."""
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch, "plain.txt")
        plain.write_text(text, encoding="utf-8", newline="\n")
        options = ("--no-escape", "-t", idle_thread_count(), "-c", CHUNK, "-b", CHUNK, "--chunks", CHUNKS)
        # Twice: a thread of its own writes the tool's log, whose end was once lost on a busy machine.
        for _ in range(2):
            printed = run([program, "-m", gguf, "-f", plain, *map(str, options)])
            if found := _ESTIMATE.search(printed):
                return float(found[1])
    raise ConvertError(f"llama-perplexity gave no estimate for {gguf.name}: {printed[-300:]}")
