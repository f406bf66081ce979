"""From one 16-bit GGUF to any of llama.cpp's types: names, predicted size, importance matrix, the tool."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path

from convert import llamacpp
from core.errors import ConvertError
from core.files import whole
from core.machine import idle_thread_count, thread_count
from core.progress import Progress

ALIASES = {"q4": "Q4_K_M", "q5": "Q5_K_M", "q6": "Q6_K", "q8": "Q8_0"}
# What `llama-quantize --help` lists for the pinned version, without numbers and sparse mixtures' own type.
TYPES = (
    *("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1"),
    *("IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K"),
    *("Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0"),
)
SIXTEEN_BIT = ("F16", "BF16")
CONVERSION = 3  # of what `convert_checkpoint` makes: another number when it makes something else
NEED_IMATRIX = ("IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S")
IMATRIX_CONTEXT = 256  # tokens a chunk: runs keep a few dozen rows, too few for the default of 512
IMATRIX_CHUNKS = 64

_STEP = re.compile(r"\[ *(\d+)/ *(\d+)\]")
_SIZE = re.compile(r"(model|quant) size +=\s+([\d.]+) MiB")


def parse_types(given: str) -> list[str]:
    """Turn `q4,q5,IQ4_XS` into llama.cpp's names, each once. Raises ConvertError with the nearest name."""
    types = []
    for word in filter(None, (word.strip() for word in given.split(","))):
        name = ALIASES.get(word.lower(), word.upper())
        if name not in TYPES:
            close = difflib.get_close_matches(word.upper(), TYPES, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConvertError(
                f"unknown quant {word!r}; {hint}choose of q4, q5, q6, q8, f16, {', '.join(TYPES)}"
            )
        if name not in types:
            types.append(name)
    if not types:
        raise ConvertError("--quant names no type; for example: --quant q5")
    return types


def predicted_size(sixteen_bit: Path, name: str) -> int:
    """Bytes that a file of type `name` will have: llama-quantize's own forecast, and the header as it is."""
    printed = llamacpp.run([llamacpp.tool("llama-quantize"), "--dry-run", sixteen_bit, name])
    sizes = {kind: float(mebibytes) * 2**20 for kind, mebibytes in _SIZE.findall(printed)}
    if set(sizes) != {"model", "quant"}:
        raise ConvertError(f"llama-quantize --dry-run gave no size for {name}")
    return round(sixteen_bit.stat().st_size - sizes["model"] + sizes["quant"])


def quantise(sixteen_bit: Path, target: Path, name: str, imatrix: Path | None, progress: Progress) -> None:
    """Write `target`, a GGUF of type `name`. Raises ConvertError."""
    options: list[str | Path] = ["--imatrix", imatrix] if imatrix else []

    def on_line(line: str) -> None:
        if found := _STEP.search(line):
            progress(int(found[1]), int(found[2]))

    tool = llamacpp.tool("llama-quantize")
    with whole(target) as partial:
        llamacpp.run([tool, *options, sixteen_bit, partial, name, str(thread_count())], on_line)


def convert_checkpoint(checkpoint: Path, target: Path, outtype: str, name: str, progress: Progress) -> None:
    """Write the 16-bit GGUF of a checkpoint with llama.cpp's converter, its beginning and ends put right.

    `name` becomes general.name (see `sixteen_bit.model_name`). Raises ConvertError.
    """

    def on_line(line: str) -> None:
        if found := re.search(r"Writing:\s+(\d+)%", line):
            progress(int(found[1]), 100)

    from convert.ends import mend  # transformers takes seconds to import

    script = llamacpp.converter()
    options = ["--outtype", outtype.lower(), "--model-name", name]
    with whole(target) as partial:
        llamacpp.run([sys.executable, script, checkpoint, "--outfile", partial, *options], on_line)
        mend(partial, checkpoint)


def convert_adapter(adapter: Path, base: Path, target: Path) -> None:
    """Write an adapter alone as a GGUF for the GGUF of its base. Raises ConvertError."""
    script = llamacpp.converter(llamacpp.LORA_CONVERTER)
    options: list[str | Path] = ["--base", base, "--outtype", "f16"]
    with whole(target) as partial:
        llamacpp.run([sys.executable, script, adapter, "--outfile", partial, *options])


def importance_matrix(sixteen_bit: Path, text: Path, target: Path, progress: Progress) -> None:
    """Write how much each input channel matters on `text`, for types that weigh their errors by it.

    Special tokens in `text` are parsed. Raises ConvertError, also when the text is shorter than one chunk.
    """
    total = 1

    def on_line(line: str) -> None:
        nonlocal total
        if found := re.search(r"over (\d+) chunks", line):
            total = int(found[1])
        elif found := re.search(r".*\[(\d+)\]", line):
            progress(int(found[1]), total)

    options = [
        *("-c", str(IMATRIX_CONTEXT), "-b", str(IMATRIX_CONTEXT), "--chunks", str(IMATRIX_CHUNKS)),
        *("--parse-special", "-t", str(idle_thread_count()), "-ngl", "99"),
    ]
    with whole(target) as partial:
        tool = llamacpp.tool("llama-imatrix")
        llamacpp.run([tool, "-m", sixteen_bit, "-f", text, "-o", partial, *options], on_line)
