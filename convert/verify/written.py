"""A checkpoint written from a GGUF predicts what llama.cpp predicts from that: asked before it is used."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from convert.rows import PLAIN_CHATS, Row
from convert.verify.adapted import float32_arithmetic, idle_threads, loading_dtype, log_probs
from convert.verify.limits import WRITTEN_KL
from convert.verify.loss import CONTEXT_STEP, compare, gguf_log_probs, save_reference, targets
from core.errors import ConvertError
from core.llama import LlamaModel
from core.machine import available_bytes, human_size

TEXTS, TOKENS = 3, 64  # what is asked: one forward each
_NEEDED = 1.1  # times the checkpoint's bytes in memory


def check_written(gguf: Path, checkpoint: Path, bos: int | None) -> str:
    """Compare the two; return a line on what was measured. Raises ConvertError where they differ.

    `bos` goes before each text, None where the model wants none.
    """
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    if _NEEDED * size > available_bytes():
        return f"note: too large for this memory ({human_size(size)}) to be compared with {gguf.name}"
    rows = _rows(gguf, bos)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # there is one of ours
    model: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=loading_dtype(size), attn_implementation="eager", use_safetensors=True
    )
    model.train(False)
    float32_arithmetic(model)
    with tempfile.TemporaryDirectory() as scratch, idle_threads():
        said = Path(scratch, "gguf.npy")
        save_reference(said, gguf_log_probs(gguf, rows, lambda: None), len(targets(rows)))
        scores = compare(said, log_probs(model, rows, lambda: None), targets(rows))
    verdict = WRITTEN_KL.judge(scores.kl_mean)
    if verdict == "fail":
        raise ConvertError(
            f"what {gguf.name} was written out as predicts something else than the file itself (mean KL "
            f"{scores.kl_mean:.3g}, {WRITTEN_KL.reason(verdict)}); get the original checkpoint from its hub"
        )
    said_so = f"compared with llama.cpp: mean KL {scores.kl_mean:.2g} over {scores.tokens} tokens"
    return " ".join([said_so, WRITTEN_KL.reason(verdict)]).strip()


def _rows(gguf: Path, bos: int | None) -> list[Row]:
    """The first of the project's own chats, as mere text."""
    llama = LlamaModel(gguf, CONTEXT_STEP, 1, [])
    try:
        chats = [json.loads(line) for line in PLAIN_CHATS.read_text(encoding="utf-8").splitlines()[:TEXTS]]
        texts = ["\n".join(message["content"] for message in chat) for chat in chats]
        found = [[*([] if bos is None else [bos]), *llama.tokenize(text, False)][:TOKENS] for text in texts]
    finally:
        llama.close()
    return [Row([], ids, [0] + [1] * (len(ids) - 1), "test") for ids in found]
