"""Fine-tune a model with QLoRA: train/qlora.py RECIPE [--plan] [--resume], or --data FILE --model NAME"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from chat.command import Parser, run
from core.errors import ChatError
from train.errors import TrainError
from train.recipe import Recipe, load_recipe, parse

ROOT = Path(__file__).resolve().parents[1]
PROG = "python train/qlora.py"


def parse_options(argv: list[str]) -> Namespace:
    """Read the options; a wrong one ends the program with one line and exit code 2."""
    parser = Parser(prog=PROG, description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help="a recipe's file, or the name of one of the project's")
    add("--data", metavar="FILE", help="instead of a recipe: chats to train on, a file or a hub name")
    add("--model", metavar="NAME", help="with --data: the base, a hub name, a folder or a GGUF file")
    add("--name", help="of the run's folder in outputs/ (the recipe's)")
    add("--plan", action="store_true", help="only say what the run will take")
    add("--resume", action="store_true", help="go on where a run was stopped")
    add("--max-steps", type=int, metavar="N", help="stop after N steps")
    add("--try", dest="ask", metavar="RUN", help="let a run's adapter answer a prompt")
    add("--prompt", help="with --try: what to ask (else the first sample of the run)")
    add("--root", type=Path, default=ROOT, help="where outputs/ is (the repository)")
    given = parser.parse_args(argv)
    ways = [bool(given.recipe), bool(given.data), bool(given.ask)]
    if sum(ways) != 1:
        parser.error("give a recipe, or --data with --model, or --try with a run")
    if bool(given.data) != bool(given.model):
        parser.error("--data and --model belong together")
    if given.max_steps is not None and given.max_steps < 1:
        parser.error(f"--max-steps {given.max_steps} is not above 0")
    return given


def main(argv: list[str]) -> int:
    """Train; return the exit code."""
    given = parse_options(argv)
    try:
        recipe = None if given.ask else recipe_of(given)
    except ChatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    outputs: Path = given.root / "outputs"

    def work() -> int:
        if recipe is None:
            from train.trial import answer

            print(answer(outputs / given.ask, given.prompt))
            return 0
        # torch takes seconds: not before the mistakes above are out of the way
        from accelerate import PartialState

        from train.planning import print_plan
        from train.run import train_run

        if given.plan:
            print_plan(recipe)
            return 0
        folder = train_run(recipe, outputs, given.resume)
        if not PartialState().is_main_process:
            return 0
        print(f"{folder} is done: see README.md, samples.md and loss.png in it")
        print(f"Next: {PROG} --try {recipe.name}")
        print(f"Next: python convert/to_gguf.py {recipe.name} --quant q5")
        return 0

    again = f"{PROG} {' '.join(argv)}" + ("" if given.resume else " --resume")
    return run(work, f"Stopped; what is done is kept. Go on with: {again}")


def recipe_of(given: Namespace) -> Recipe:
    """The recipe that the options ask for. Raises TrainError."""
    recipe = load_recipe(given.recipe) if given.recipe else without_recipe(given.data, given.model)
    if given.name:
        recipe = recipe.model_copy(update={"name": given.name})
    if Path(recipe.name).name != recipe.name or recipe.name.startswith("."):
        raise TrainError(f"the name {recipe.name!r} can't be a folder's; give another: --name")
    if given.max_steps:
        sft = recipe.sft.model_copy(update={"max_steps": given.max_steps})
        recipe = recipe.model_copy(update={"sft": sft})
    return recipe


def without_recipe(data: str, model: str) -> Recipe:
    """The recipe for somebody's own data and base: our defaults, with what the QLoRA paper recommends."""
    path = Path(model)
    base = {"base_model": model, "license": "unknown"}
    if path.suffix == ".gguf":
        base = {"base_model": str(path.parent), "gguf_file": path.name, "license": "unknown"}
    name = f"{path.stem if path.suffix == '.gguf' else path.name}-{Path(data).stem}".lower()
    content = {
        "name": name,
        "model": base,
        "data": {"path": data},
        "BitsAndBytesConfig": {"load_in_4bit": True},
        "SFTConfig": {"num_train_epochs": 3, "warmup_ratio": 0.03, "early_stopping_patience": 2},
    }
    return parse(content, f"--data {data} --model {model}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
