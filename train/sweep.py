"""Train a recipe over a grid of its keys and several seeds, on one base: train/sweep.py SWEEP"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import Parser, missing, run

try:
    from core.command import ROOT, command_line
    from core.errors import ChatError, TrainError
    from core.files import write_whole
    from train.recipe import Recipe, full_path
    from train.stops import interrupt, on_stop
    from train.sweep_grid import Cell, Sweep, cells, load_sweep
except ModuleNotFoundError as error:
    sys.exit(missing(error))

SCRIPT = "train/sweep.py"
PROG = f"python {SCRIPT}"
ROWS = "rows.jsonl"
MEASURED = ("best_eval_loss", "last_eval_loss", "grad_norm_max")  # two runs never agree in all of them

Row = dict[str, Any]
RunCell = Callable[[Recipe, Path], dict[str, float | None]]


def run_sweep(sweep: Sweep, todo: list[Cell], folder: Path, run_cell: RunCell) -> list[Row]:
    """Run what isn't in `folder`/rows.jsonl yet; return all rows of the sweep. Raises TrainError.

    `run_cell(recipe, folder)` trains and returns what it measured: MEASURED and `diverged`, and more.
    A row is written as soon as it is measured: a kill loses the run that was going on, no other.
    """
    rows = _read(folder / ROWS)
    for row in rows.values():
        _refuse_copy(row, rows)
    folder.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(todo, 1):
        key = cell.recipe.config_hash()
        if key in rows:
            continue
        said = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in cell.values.items())
        rate = cell.recipe.args.learning_rate
        print(f"{number} of {len(todo)}: {said}, learning rate {rate:g} ({cell.arm}), seed {cell.seed}")
        measured = run_cell(cell.recipe, folder / key)
        row = {"config": key, **cell.values, "learning_rate": rate, "seed": cell.seed, **measured}
        _refuse_copy(row, rows)
        rows[key] = row
        write_whole(folder / ROWS, "".join(json.dumps(row) + "\n" for row in rows.values()))
    return [rows[cell.recipe.config_hash()] for cell in todo]


def _read(path: Path) -> dict[str, Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return {row["config"]: row for row in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError) as error:
        raise TrainError(f"can't read {path} ({error}); move it away, and its runs are done again") from None


def _refuse_copy(row: Row, rows: dict[str, Row]) -> None:
    """Raise TrainError if another configuration measured exactly the same."""
    measured = [row.get(name) for name in MEASURED]
    for other in rows.values():
        same = other["config"] != row["config"] and [other.get(name) for name in MEASURED] == measured
        if same and None not in measured:
            said = ", ".join(f"{name} {value}" for name, value in zip(MEASURED, measured, strict=True))
            raise TrainError(
                f"runs {other['config']} and {row['config']} have different settings and equal results "
                f"({said}): either one is a copy of the other, or what was swept has no effect. Sweep "
                "something else, or remove the copy"
            )


def main(argv: list[str]) -> int:
    """Run a sweep; return the exit code."""
    parser = Parser(prog=PROG, description=__doc__, allow_abbrev=False)
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's file, or the name of one of the project's")
    parser.add_argument("--max-steps", type=int, metavar="N", help="of each run")
    parser.add_argument("--root", type=full_path, default=ROOT, help="where outputs/ is (the repository)")
    given = parser.parse_args(argv)
    if given.max_steps is not None and given.max_steps < 1:
        parser.error(f"--max-steps {given.max_steps} is not above 0")
    try:
        sweep = load_sweep(given.sweep)
        todo = cells(sweep, given.max_steps)
    except ChatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def work() -> int:
        from train.sweep_cell import Trainer  # torch takes seconds: not before the mistakes above are known
        from train.sweep_results import write_results

        folder = given.root / "outputs" / sweep.name
        trainer = Trainer(folder)
        trainer.refuse_changed((cell.recipe for cell in todo), _read(folder / ROWS))
        rows = run_sweep(sweep, todo, folder, trainer.run_cell)
        print(write_results(sweep, todo, rows, folder))
        return 0

    def stoppable() -> int:
        with on_stop(interrupt):
            return work()

    return run(stoppable, f"Stopped; finished runs are kept. Go on with: {command_line(SCRIPT, argv)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
