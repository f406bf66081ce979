"""Fine-tune a model with QLoRA: train/qlora.py RECIPE [--plan] [--resume], or --data FILE --model NAME"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import Parser, missing, run

try:
    import yaml

    from core.command import ROOT, command_line
    from core.errors import ChatError, DiskError, TrainError
    from train.recipe import Recipe, changed, full_path, load_recipe, located, parse, with_paths
    from train.stops import interrupt, on_stop
except ModuleNotFoundError as error:
    sys.exit(missing(error))

SCRIPT = "train/qlora.py"
PROG = f"python {SCRIPT}"
KEY = re.compile(r"(?<![\w./-])(?:model|data|SFTConfig|DPOConfig|LoraConfig|BitsAndBytesConfig)\.\w+")
# Keys that have an option of their own, longer ones first.
OPTIONS = {
    "model.base_model and model.gguf_file": "--model",
    "model.base_model": "--model",
    "model.gguf_file": "--model",
    "data.path": "--data",
}


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
    add("--waive", action="append", default=[], metavar="CHECK", help="train although this check refuses")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the recipe: SFTConfig.seed=1",
    )
    add("--max-steps", type=int, metavar="N", help="stop after N steps")
    add("--try", dest="ask", metavar="RUN", help="let a run's adapter answer a prompt")
    add("--prompt", help="with --try: what to ask (else the first sample of the run)")
    add("--root", type=full_path, default=ROOT, help="where outputs/ is (the repository)")
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
    again = command_line(SCRIPT, argv if given.resume else [*argv, "--resume"])

    def work() -> int:
        if recipe is None:
            from train.fine_tune import answer
            from train.finished import find_run

            print(answer(find_run(given.ask, outputs), given.prompt))
            return 0
        # torch takes seconds: not before the mistakes above are out of the way
        from accelerate import PartialState

        from train.fine_tune import print_plan, train_run

        try:
            if given.plan:
                print_plan(recipe, outputs)
                return 0
            made = train_run(recipe, outputs, given.resume)
        except DiskError as error:
            raise TrainError(f"{error}. After that, go on with: {again}") from None
        except TrainError as error:
            raise TrainError(with_option(str(error)) if given.data else str(error)) from None
        if not PartialState().is_main_process:
            return 0
        root = [] if given.root == ROOT else ["--root", given.root]
        print(f"{made} is done: see README.md, samples.md and loss.png in it")
        print(f"Next: {command_line(SCRIPT, ['--try', recipe.name, *root])}")
        print(f"Next: {command_line('convert/to_gguf.py', [recipe.name, '--quant', 'q5', *root])}")
        return 0

    def stoppable() -> int:
        with on_stop(interrupt):
            return work()

    return run(stoppable, f"Stopped; what is done is kept. Go on with: {again}")


def with_option(message: str) -> str:
    """A refusal that names a key of the recipe, where there is no recipe: with the option that sets it."""
    for ours, option in OPTIONS.items():
        message = re.sub(rf"(?<![\w./-]){re.escape(ours)}(?![\w/-]|\.\w)", option, message)
    key = None if "--set" in message else KEY.search(message)
    return f"{message}\nSuch a key is set by an option: --set {key[0]}=VALUE" if key else message


def recipe_of(given: Namespace) -> Recipe:
    """The recipe that the options ask for. Raises TrainError."""
    pairs = any(option.startswith("DPOConfig.") for option in given.set)
    recipe = load_recipe(given.recipe) if given.recipe else without_recipe(given.data, given.model, pairs)
    if given.name:
        recipe = recipe.model_copy(update={"name": given.name})
    if Path(recipe.name).name != recipe.name or recipe.name.startswith("."):
        raise TrainError(f"the name {recipe.name!r} can't be a folder's; give another: --name")
    if given.set:
        recipe = with_paths(changed(recipe, dict(map(setting, given.set)), "--set"), Path.cwd())
    if given.max_steps:
        recipe = changed(recipe, {f"{recipe.args.title}.max_steps": given.max_steps}, "--max-steps")
    waive = dict.fromkeys([*recipe.waive, *(name for names in given.waive for name in names.split(","))])
    return changed(recipe, {"waive": list(waive)}, "--waive")


def setting(given: str) -> tuple[str, Any]:
    """`KEY=VALUE` of the command line; the value as it would be in a recipe. Raises TrainError."""
    key, sign, value = given.partition("=")
    try:
        if sign and key.strip():
            return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise TrainError(f"--set {given!r} isn't KEY=VALUE, as in --set SFTConfig.max_length=4096")


def without_recipe(data: str, model: str, pairs: bool = False) -> Recipe:
    """The recipe for somebody's own data and base: our defaults, with what the QLoRA paper recommends.

    Preferences (`pairs`) are read once, as in TRL's own example.
    """
    data, model = located(data, Path.cwd()), located(model, Path.cwd())
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
    if pairs:
        content["DPOConfig"] = {"warmup_ratio": 0.1}
        del content["SFTConfig"]
    return parse(content, f"--data {data} --model {model}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
