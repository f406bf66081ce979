"""Make preferences of quotes, the right author before a wrong one: train/tasks/make_quote_pairs.py

People credit the famous with what others said, and so do models. The wrong author of a quote is therefore one
of the six that the data quotes most, by a hash of the quote: the same pairs each time. Columns: `prompt`,
`chosen`, `rejected`, and `author`, by which rows are split.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core.command import Parser, run
from core.errors import TrainError
from core.files import write_whole
from train.tasks.quotes import clean_author, clean_quote

QUOTES = Path(__file__).resolve().parents[1] / "recipes" / "quotes.jsonl"
FAMOUS = 6


def pairs(rows: Iterable[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    """A pair for each row that has a quote and an author."""
    quotes = [(clean_quote(row["quote"]), clean_author(row["author"])) for row in rows]
    quotes = [(quote, author) for quote, author in quotes if quote and author]
    famous = [author for author, _ in Counter(author for _, author in quotes).most_common(FAMOUS)]
    for quote, author in quotes:
        others = [name for name in famous if name != author]
        at = int(hashlib.sha256(quote.encode()).hexdigest(), 16) % len(others)
        yield {
            "prompt": f"Who said this? {quote}",
            "chosen": author,
            "rejected": others[at],
            "author": author,
        }


def main(argv: list[str]) -> int:
    """Write the pairs; return the exit code."""
    parser = Parser(prog="python train/tasks/make_quote_pairs.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--quotes", type=Path, default=QUOTES, metavar="FILE.jsonl")
    given = parser.parse_args(argv)

    def make() -> int:
        if given.out.exists():
            raise TrainError(f"{given.out} is there already; remove it, or give --out another name")
        lines = given.quotes.read_text(encoding="utf-8").splitlines()
        made = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs(map(json.loads, lines))]
        write_whole(given.out, "".join(made))
        print(f"{given.out}: {len(made):,} pairs")
        return 0

    return run(make, "Stopped; no file was written.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
