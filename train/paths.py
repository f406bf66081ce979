"""Files that people name: the same from anywhere, in a recipe, a sweep or a command; and their YAML."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml

from core.errors import TrainError

ROOT = Path(__file__).resolve().parents[1]
FILES = (".jsonl", ".json", ".csv", ".parquet", ".tsv", ".gguf")  # no name on the hub ends like these


class _Loader(yaml.SafeLoader):
    """YAML that refuses the same key twice; the library takes the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def located(path: str, *starts: Path) -> str:
    """A file or folder as an absolute path, the same from anywhere; the name of a hub's as it is.

    `~` is the home; a relative path begins at the first of `starts` where it is there. In a recipe these are
    the recipe's folder and the repository, on the command line the working directory.
    """
    home = Path(path).expanduser()
    places = [os.path.abspath(start / home) for start in starts]
    found = next((place for place in places if os.path.exists(place)), None)
    named = home.suffix in FILES or path.startswith((".", "~", "/"))
    return found or (places[0] if named else path)


def full_path(given: str) -> Path:
    """A folder of the command line, in full: what is printed with it is right from anywhere."""
    return Path(given).expanduser().absolute()


def find_file(given: str | Path, folder: Path, kind: str) -> Path:
    """The file `given`, or the one of that name that comes with the project. Raises TrainError."""
    for path in (Path(given).expanduser(), folder / f"{given}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    near = difflib.get_close_matches(Path(given).stem, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise TrainError(f"no {kind} is called {str(given)!r}; {hint}There are: {', '.join(known)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping. Raises TrainError."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f"can't read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise TrainError(f"{path} has no sections; see train/recipes for some that do")
    return content
