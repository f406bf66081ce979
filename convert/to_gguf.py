"""Turn a fine-tuned model into GGUF files that have proved themselves: convert/to_gguf.py --quant q5"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from convert.quantise import parse_types
from convert.source import find_source
from convert.stages import Settings
from core.command import ROOT, Parser, run
from core.errors import ChatError


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the options; a wrong one ends the program with one line and exit code 2."""
    parser = Parser(prog="python convert/to_gguf.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="a run, an adapter's folder or a checkpoint; the newest run")
    add("--quant", default="q5", help="q4, q5, q6, q8, f16, or llama.cpp's names; several with commas (q5)")
    add(
        "--base",
        choices=("full", "nf4", "auto"),
        help="merge on the 16-bit base, on what 4-bit training (NF4) made of it, or the better (auto)",
    )
    add(
        "--base-model",
        metavar="DIR",
        help="the base, if it is not where the adapter says: a folder, a GGUF or a hub name",
    )
    add(
        "--imatrix",
        default="auto",
        help="auto, none or a file: weigh errors by what matters on the run's data",
    )
    add("--lora", action="store_true", help="write the adapter alone, as a GGUF for the GGUF of its base")
    add("--keep", action="store_true", help="keep the merged checkpoint")
    add("--root", type=Path, default=ROOT, help="where outputs/ and models/ are (the repository)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Convert; return the exit code: 0 when each file passed its checks, 1 otherwise."""
    given = parse(argv)
    try:
        types = parse_types(given.quant)
    except ChatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def convert() -> int:
        source = find_source(given.run, given.root / "outputs")
        # torch takes seconds: not before the mistakes above are out of the way.
        from convert import conversion, lora_gguf

        settings = Settings(given.base_model, given.base, given.imatrix, given.keep)
        if given.lora:
            return lora_gguf.adapter_alone(source, settings, given.root)
        return conversion.convert(source, settings, types, given.root)

    return run(convert, "Stopped. The same command goes on where it was.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
