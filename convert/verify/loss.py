"""Check: loss, perplexity and KL divergence of each stage, on the run's exact ids and label mask."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert.llamacpp import run, tool
from convert.verify.limits import CHECKPOINT_KL, CROSS_CHECK, Check, Limit, kl_limit, same_top_limit
from core.errors import ConvertError
from core.gguf_model import read_gguf
from core.llama import LlamaModel
from core.llama_sampler import log_softmax
from core.log_probs import Scores
from core.machine import idle_thread_count
from core.rows import PLAIN_CHATS, Row

# 1,000 scored tokens give the mean KL of a 4-bit file to about 5 %, and take seconds on a small model. The
# other bounds keep long prompts from taking minutes; 2,048 is also below the length at which Phi-3.5 changes
# its RoPE factors, which llama.cpp decides by the context and transformers by the text.
MAX_SCORED, MAX_EVALUATED, MAX_ROW = 1000, 4096, 2048


def rows_to_score(rows: Sequence[Row]) -> list[Row]:
    """Choose the test rows (all, where no row is for testing) up to the caps; the last one may be cut.

    Raises ConvertError when no token is left to score.
    """
    chosen, scored, evaluated = [], 0, 0
    for row in [row for row in rows if row.split == "test"] or rows:
        ids = row.ids[: min(MAX_ROW, MAX_EVALUATED - evaluated)]
        mask = [0, *row.mask[1 : len(ids)]]  # nothing predicts the first token
        wanted = [i for i, trained in enumerate(mask) if trained][: MAX_SCORED - scored]
        if wanted:
            end = wanted[-1] + 1
            chosen.append(Row(row.messages, ids[:end], mask[:end], row.split))
            scored, evaluated = scored + len(wanted), evaluated + end
    if not chosen:
        raise ConvertError(
            f"none of the {len(rows)} rows has a trained token among its first {MAX_ROW}; train with shorter "
            "prompts, or remove prompts.jsonl to use the project's own chats"
        )
    return chosen


def check_sixteen_bit(scores: Scores, n_vocab: int) -> list[Check]:
    """Judge the 16-bit GGUF against the checkpoint that it was converted from."""
    checks = judged("16 bit", scores, CHECKPOINT_KL, same_top_limit(CHECKPOINT_KL))
    if guesses(scores, n_vocab):
        checks[0] = replace(checks[0], verdict="warn", reason=GUESSES)
    return checks


def check_quantised(
    scores: Scores, file_type: str, fallbacks: Iterable[str], n_params: int, guessing: bool = False
) -> list[Check]:
    """Judge a quantised GGUF against the 16-bit one; `fallbacks` are types used where K-quants don't fit.

    A model that only guesses has no preferences to keep: then only what is no number fails.
    """
    limit = kl_limit(file_type, fallbacks, n_params)
    checks = judged(file_type, scores, limit, same_top_limit(limit))
    if guessing and checks[0].verdict == "ok":
        checks[1:] = [replace(check, verdict="n/a", reason=GUESSES) for check in checks[1:]]
    return checks


def guesses(scores: Scores, n_vocab: int) -> bool:
    """Tell whether a model predicts no better than an even guess, as one with random weights does."""
    return scores.loss >= math.log(n_vocab)


GUESSES = "the checkpoint itself predicts no better than chance"


def judged(stage: str, scores: Scores, kl: Limit, same_top: Limit) -> list[Check]:
    """Judge a stage's loss (a number?), divergence and likeliest tokens against the stage before it."""
    finite = math.isfinite(scores.loss) and math.isfinite(scores.kl_mean)
    return [
        Check(
            f"{stage}: loss",
            "ok" if finite else "fail",
            f"{scores.loss:.4f} over {scores.tokens} tokens",
            "" if finite else "not a number",
        ),
        Check(f"{stage}: KL", (v := kl.judge(scores.kl_mean)), f"{scores.kl_mean:.3g}", kl.reason(v)),
        Check(
            f"{stage}: same top",
            (v := same_top.judge(1 - scores.same_top)),
            f"{scores.same_top:.1%}",
            "" if v == "ok" else f"{v} below {1 - getattr(same_top, v):.1%} ({same_top.source})",
        ),
    ]


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
