"""Write a GGUF out as a plain 16-bit Hugging Face checkpoint: python convert/from_gguf.py FILE.gguf --out DIR

For a model that is to be had as GGUF only, or from a package without a hub. A quantised file stays what
quantising left of the model: the weights are the rounded ones, in a type that training can use.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import Parser, missing, run

try:
    from core.from_gguf import checkpoint_from_gguf
    from core.machine import human_size
except ModuleNotFoundError as error:
    sys.exit(missing(error))


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
