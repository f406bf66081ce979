"""What a changed prompt costs a run's adapter, beside its base: train/robustness.py RUN"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import Parser, missing, run

try:
    from core.command import ROOT, command_line
    from train.recipe import full_path
    from train.stops import interrupt, on_stop
except ModuleNotFoundError as error:
    sys.exit(missing(error))

ROWS = 64  # a minute or two for the tour on two cores


def main(argv: list[str]) -> int:
    """Measure; return the exit code."""
    parser = Parser(prog="python train/robustness.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("run", metavar="RUN", help="a run that has ended: its name in outputs/, or its folder")
    add("--rows", type=int, default=ROWS, metavar="N", help=f"of its test, at most ({ROWS})")
    add("--root", type=full_path, default=ROOT, help="where outputs/ is (the repository)")
    given = parser.parse_args(argv)
    if given.rows < 1:
        parser.error(f"--rows {given.rows} is not above 0")

    def work() -> int:
        from train.finished import find_run  # torch takes seconds: not before the mistakes above are known
        from train.robustness_run import measure_run, write_report

        folder = find_run(given.run, given.root / "outputs")
        print(write_report(folder, measure_run(folder, given.rows)))
        print(f"All of it is in {folder / 'robustness.md'}")
        root = [] if given.root == ROOT else ["--root", given.root]
        print(f"Next: {command_line('convert/to_gguf.py', [given.run, '--quant', 'q5', *root])}")
        return 0

    def stoppable() -> int:
        with on_stop(interrupt):
            return work()

    return run(stoppable, "Stopped; nothing was written.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
