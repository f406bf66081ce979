"""Write a GGUF out as a plain 16-bit Hugging Face checkpoint: python convert/from_gguf.py FILE.gguf --out DIR

For a model that is to be had as GGUF only, or from a package without a hub. A quantised file stays what
quantising left of the model: the weights are the rounded ones, in a type that training can use.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import Parser, missing, run

try:
    from core.errors import ConvertError
    from core.gguf_model import GgufFile, read_gguf
    from core.machine import human_size
    from core.progress import bar
except ModuleNotFoundError as error:
    sys.exit(missing(error))

BYTES_PER_WEIGHT = 2


def checkpoint_from_gguf(gguf: Path, out: Path) -> str:
    """Write config, weights, tokenizer and generation config of the model `gguf` into the new folder `out`.

    Of a split model, `gguf` is any part. Returns a line on how it compares with the file in llama.cpp.
    Raises ConvertError, also where it predicts something else; ModelFileError for a file that can't be read.
    """
    file = read_gguf(gguf)  # checks all lengths, so that the other readers meet a sound file
    _check(file, out)
    # These take seconds: not before the mistakes above are out of the way.
    from transformers import GenerationConfig

    from convert.gguf_tokenizer import read_tokens, write_tokenizer
    from convert.gguf_weights import empty_model, read_config, read_tensors, read_weights, storage_type
    from convert.verify.written import check_written
    from core.checkpoint import CheckpointWriter

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


def main(argv: list[str]) -> int:
    """Run the command; return its exit code."""
    parser = Parser(prog="python convert/from_gguf.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, metavar="FILE.gguf", help="the model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    given = parser.parse_args(argv)

    def work() -> int:
        print(checkpoint_from_gguf(given.file, given.out))
        size = human_size(sum(path.stat().st_size for path in given.out.iterdir()))
        print(f"{given.out} is a checkpoint of {size}; fine-tune it, or name it as the base of a run.")
        return 0

    return run(work, "Stopped; nothing was kept.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
