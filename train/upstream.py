"""The keywords of upstream's config classes, read from their source: importing them would import torch.

A class's fields are those of the classes in `SOURCES`, parents first. Types and defaults are what the source
says; what isn't a plain type or a plain value there is `Any` and `UNSAID`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Optional, Union

Source = tuple[str, str, str]  # package, file, class

SOURCES: dict[str, list[Source]] = {
    "SFTConfig": [
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ],
    "LoraConfig": [
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ],
    "BitsAndBytesConfig": [("transformers", "utils/quantization_config.py", "BitsAndBytesConfig")],
}
CHOICES: dict[str, Source] = {
    "OptimizerNames": ("transformers", "training_args.py", "OptimizerNames"),
    "SchedulerType": ("transformers", "trainer_utils.py", "SchedulerType"),
}
UNSAID: Any = object()  # a default that isn't a plain value
_PLAIN = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict, "tuple": tuple}
_TYPES = _PLAIN | {"Any": Any, "Optional": Optional, "Union": Union, "Literal": Literal, "None": None}


@dataclass(frozen=True)
class Keyword:
    """One keyword: its type, its default, and the enum that holds its choices, if one does."""

    kind: Any
    default: Any
    choices: str = ""


@cache
def keywords(name: str) -> dict[str, Keyword]:
    """The keywords of an upstream class."""
    found: dict[str, Keyword] = {}
    for source in SOURCES[name]:
        found |= {key: word for key, word in _of_class(*source) if not key.startswith("_")}
    return found


@cache
def choices(enum: str) -> list[str]:
    """The values of one of upstream's enums of text."""
    body = _class(*CHOICES[enum]).body
    return [ast.literal_eval(line.value) for line in body if isinstance(line, ast.Assign)]


def trackers() -> list[str]:
    """What `report_to` knows: the keys of transformers' INTEGRATION_TO_CALLBACK."""
    text = _read("transformers", "integrations/integration_utils.py")
    table = re.search(r"^INTEGRATION_TO_CALLBACK = \{(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'"(\w+)":', table[1]) if table else []


def _of_class(package: str, file: str, name: str) -> Iterator[tuple[str, Keyword]]:
    """The fields of a dataclass; of another class, the arguments of its `__init__`."""
    body = _class(package, file, name).body
    for line in body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            enums = [part.id for part in ast.walk(line.annotation) if isinstance(part, ast.Name)]
            enum = next((part for part in enums if part in CHOICES), "")
            yield line.target.id, Keyword(_kind(line.annotation), _default(line.value), enum)
        elif isinstance(line, ast.FunctionDef) and line.name == "__init__":
            for argument, value in zip(line.args.args[1:], line.args.defaults, strict=True):
                default = _default(value)
                yield argument.arg, Keyword(Any if default is None else type(default), default)


def _kind(annotation: ast.expr) -> Any:
    """The type that an annotation means; text in place of a dict is for upstream's command line alone."""
    said = re.sub(r"\b(dict(\[.+?\])?) \| str\b", r"\1", ast.unparse(annotation))
    try:
        return eval(said, {"__builtins__": {}}, _TYPES)  # of an installed library's own source
    except (NameError, TypeError, SyntaxError):
        return Any


def _default(value: ast.expr | None) -> Any:
    """A default as the source writes it, within `field(...)` or without."""
    if isinstance(value, ast.Call):
        given = {word.arg: word.value for word in value.keywords}
        made = given.get("default_factory")
        if isinstance(made, ast.Name) and made.id in ("dict", "list"):
            return _PLAIN[made.id]()
        value = given.get("default")
    try:
        return UNSAID if value is None else ast.literal_eval(value)
    except ValueError:
        return UNSAID


def _class(package: str, file: str, name: str) -> ast.ClassDef:
    """A class as far as its fields go: methods other than `__init__` aren't parsed."""
    text = _read(package, file)
    found = re.search(rf"^class {name}\b.*?(?=^[^\s)#]|\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise ImportError(f"{package} has no {name} in {file}: it is another release than this program's")
    body = re.split(r"^    (?=@|def (?!__init__))", found[0], maxsplit=1, flags=re.MULTILINE)[0]
    (tree,) = ast.parse(body).body
    assert isinstance(tree, ast.ClassDef)
    return tree


@cache
def _read(package: str, file: str) -> str:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} isn't installed: pip install -r train/requirements.txt")
    return (Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8")
