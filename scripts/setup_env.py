"""Set up `.venv`, or notice that nothing changed: python3 scripts/setup_env.py TARGET"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
USAGE = "usage: python3 scripts/setup_env.py chat|convert|train|lint|test"

if not __package__:  # run as a script: import from the repository's root, not from this folder
    sys.path[0] = str(ROOT)


def python_problem(version: tuple[int, ...], target: str) -> str:
    """Say what is wrong with this Python and which one to use instead; empty when it is new enough."""
    if version >= OLDEST:
        return ""
    import shutil

    newer = [name for name in ("python3.13", "python3.12", "python3.11") if shutil.which(name)]
    cure = f"make {target} PYTHON={newer[0]}" if newer else "install Python 3.11, then make again"
    found, oldest = (".".join(map(str, v[:2])) for v in (version, OLDEST))
    return f"Python {found} is too old: tune2chat needs {oldest} or newer. Run: {cure}"


def main(arguments: list[str] | None = None) -> None:
    """Set up what one make target needs."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or arguments[0] not in ("chat", "convert", "train", "lint", "test"):
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    if problem := python_problem(sys.version_info[:2], arguments[0]):
        sys.exit(f"error: {problem}")
    # Imported here: an older Python must get as far as the sentence above.
    from scripts.app_parts import install_app, install_folder
    from scripts.dev_parts import install_extras, install_tools
    from scripts.environment import Environment, SetupError

    environment = Environment(ROOT / ".venv")
    try:
        environment.create()
        install_app(environment, ROOT)
        if arguments[0] != "chat":
            # Training's has all of the conversion's: a GGUF base is written out as a checkpoint.
            install_folder(environment, ROOT, "convert" if arguments[0] == "convert" else "train")
        if arguments[0] in ("lint", "test"):
            install_tools(environment, ROOT)
        problems = install_extras(environment, ROOT) if arguments[0] == "test" else []
        environment.compile()
    except SetupError as error:
        sys.exit(f"error: {error}")
    for problem in problems:
        print(f"note: {problem}", flush=True)


if __name__ == "__main__":
    main()
