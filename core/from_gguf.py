"""A GGUF written out as a plain 16-bit checkpoint that predicts what llama.cpp predicts from the file."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from core.errors import ConvertError
from core.gguf_model import GgufFile, read_gguf
from core.machine import available_bytes, human_size
from core.progress import bar
from core.rows import PLAIN_CHATS, Row

# What decides what a GGUF is written out as, beside its own content.
GGUF_WRITERS = [
    Path(__file__).with_name(f"{name}.py") for name in ("from_gguf", "gguf_tokenizer", "gguf_weights")
]
BYTES_PER_WEIGHT = 2
TEXTS, TOKENS = 3, 64  # what both are asked: one forward each
_NEEDED = 1.1  # times the checkpoint's bytes in memory, to ask it
# Mean KL divergence of the checkpoint, in fp32, from llama.cpp on the GGUF, in nats. llama.cpp rounds
# activations to 8 bits where weights are quantised. A wrong order of one layer's rows alone is far above.
_WARN, _FAIL, _SOURCE = 0.03, 0.2, "8-bit activations made 0.004 and 0.005 in two small models"


def checkpoint_from_gguf(gguf: Path, out: Path) -> str:
    """Write config, weights, tokenizer and generation config of the model `gguf` into the new folder `out`.

    Of a split model, `gguf` is any part. Returns a line on how it compares with the file in llama.cpp.
    Raises ConvertError, also where it predicts something else; ModelFileError for a file that can't be read.
    """
    file = read_gguf(gguf)  # checks all lengths, so that the other readers meet a sound file
    _check(file, out)
    # These take seconds: not before the mistakes above are out of the way.
    from transformers import GenerationConfig

    from core.checkpoint import CheckpointWriter
    from core.gguf_tokenizer import read_tokens, write_tokenizer
    from core.gguf_weights import empty_model, read_config, read_tensors, read_weights, storage_type

    tokens = read_tokens(gguf)
    tensors, dtype = read_tensors(file), storage_type(file)
    model = empty_model(read_config(file, tensors))
    with CheckpointWriter(out) as writer, bar("De-quantise", "B") as tell:
        done = 0
        for name, tensor in read_weights(file, tensors, model, dtype):
            writer.add(name, tensor)
            done += tensor.nbytes
            tell(done, BYTES_PER_WEIGHT * file.n_params)
        vocab = file.vocab
        ids = {"bos_token_id": vocab.bos_id, "eos_token_id": vocab.eos_id, "pad_token_id": tokens.pad_id}
        model.config.update({**ids, "dtype": dtype, "architectures": [type(model).__name__]})
        model.config.save_pretrained(writer.partial)
        stops = sorted(vocab.eog_ids, key=lambda i: (i != vocab.eos_id, i))
        generation: Any = GenerationConfig  # untyped
        generation(**{**ids, "eos_token_id": stops}).save_pretrained(writer.partial)
        write_tokenizer(tokens, writer.partial, file.chat_template)
        writer.finish()
        return check_written(file.parts[0], writer.partial, vocab.bos_id if vocab.add_bos else None)


def _check(file: GgufFile, out: Path) -> None:
    if out.exists():
        raise ConvertError(f"{str(out)!r} is there already; remove it, or give another --out")
    if not file.n_params:
        raise ConvertError(f"{file.path.name} holds a vocabulary and no weights")
    size = BYTES_PER_WEIGHT * file.n_params
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(place).free) < size:
        raise ConvertError(
            f"{file.path.name} becomes {human_size(size)}, and {place} has {human_size(free)} free"
        )


def check_written(gguf: Path, checkpoint: Path, bos: int | None) -> str:
    """Compare the two; return a line on what was measured. Raises ConvertError where they differ.

    `bos` goes before each text, None where the model wants none.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from core import log_probs

    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    if _NEEDED * size > available_bytes():
        return f"note: too large for this memory ({human_size(size)}) to be compared with {gguf.name}"
    rows = _rows(gguf, bos)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # there is one of ours
    model: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=log_probs.loading_dtype(size), attn_implementation="eager", use_safetensors=True
    )
    model.train(False)
    log_probs.float32_arithmetic(model)
    targets = log_probs.targets(rows)
    with tempfile.TemporaryDirectory() as scratch, log_probs.idle_threads():
        said = Path(scratch, "gguf.npy")
        log_probs.save_reference(said, log_probs.gguf_log_probs(gguf, rows, lambda: None), len(targets))
        scores = log_probs.compare(said, log_probs.log_probs(model, rows, lambda: None), targets)
    apart = scores.kl_mean
    if not apart <= _FAIL:  # so that NaN fails too
        raise ConvertError(
            f"what {gguf.name} was written out as predicts something else than the file itself (mean KL "
            f"{apart:.3g}, above {_FAIL}: {_SOURCE}); get the original checkpoint from its hub"
        )
    doubt = f", above {_WARN}: {_SOURCE}" if apart > _WARN else ""
    return f"compared with llama.cpp: mean KL {apart:.2g} over {scores.tokens} tokens{doubt}"


def _rows(gguf: Path, bos: int | None) -> list[Row]:
    """The first of the project's own chats, as mere text."""
    from core.llama import LlamaModel

    llama = LlamaModel(gguf, TOKENS, 1, [])
    try:
        chats = [json.loads(line) for line in PLAIN_CHATS.read_text(encoding="utf-8").splitlines()[:TEXTS]]
        texts = ["\n".join(message["content"] for message in chat) for chat in chats]
        found = [[*([] if bos is None else [bos]), *llama.tokenize(text, False)][:TOKENS] for text in texts]
    finally:
        llama.close()
    return [Row([], ids, [0] + [1] * (len(ids) - 1), "test") for ids in found]
