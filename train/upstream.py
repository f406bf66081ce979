"""Sections that take the keywords of upstream's config classes, read from their source, without torch.

A class's fields are those of the classes in `SOURCES`, parents first. Types and defaults are what the source
says; what isn't a plain type or a plain value there is `Any` and `UNSAID`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional, TypeVar, Union

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, create_model, model_serializer

from train.refused import REFUSED, why_not

Source = tuple[str, str, str]  # package, file, class

SOURCES: dict[str, list[Source]] = {
    "SFTConfig": [
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ],
    "DPOConfig": [
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/dpo_config.py", "DPOConfig"),
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
_OTHER = "{} has no {} in {}: it is another release than this program's"
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
    if not table:
        raise ImportError(_OTHER.format("transformers", "INTEGRATION_TO_CALLBACK", "integration_utils.py"))
    return re.findall(r'"(\w+)":', table[1])


def names_in(package: str, file: str, pattern: str) -> list[str]:
    """What the source of a library has where `pattern` has its group, each once; at least one."""
    found = list(dict.fromkeys(re.findall(pattern, _read(package, file), re.DOTALL)))
    if not found:
        raise ImportError(_OTHER.format(package, pattern, file))
    return found


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
        raise ImportError(_OTHER.format(package, name, file))
    body = re.split(r"^    (?=@|def (?!__init__))", found[0], maxsplit=1, flags=re.MULTILINE)[0]
    (tree,) = ast.parse(body).body
    assert isinstance(tree, ast.ClassDef)
    return tree


@cache
def _read(package: str, file: str) -> str:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)  # as an import would
    return (Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8")


class Section(BaseModel):
    """Frozen, and closed: an unknown key is an error, and so are NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Upstream(Section):
    """A section that is upstream's class; what nobody set of its rest isn't written, hashed or passed on."""

    rest: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unset = {name for name in self.rest if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in unset}

    def passed(self) -> dict[str, Any]:
        """What was set of upstream's keywords that the program doesn't read itself."""
        return {name: value for name, value in self.model_dump().items() if name in self.rest}


Kind = TypeVar("Kind", bound=Upstream)


def of(upstream: str, **bounds: Any) -> Callable[[type[Kind]], type[Kind]]:
    """A decorator that adds what the class of that name has beside the keys that are there.

    `bounds`: types that are narrower than upstream's, or those of keys whose type the source doesn't say.
    """

    def extended(section: type[Kind]) -> type[Kind]:
        fields: dict[str, Any] = {}
        for name, keyword in keywords(upstream).items():
            if name in REFUSED[upstream]:
                continue
            ours = section.model_fields.get(name)
            kind = bounds.get(name, keyword.kind)
            if keyword.choices:
                kind = Literal[tuple(value for value in choices(keyword.choices) if not why_not(name, value))]
            if ours is None:
                fields[name] = (kind, keyword.default)
            elif keyword.choices or name in bounds:
                fields[name] = (kind, ours.default)
        made: Any = create_model(
            section.__name__,
            __base__=section,
            __module__=section.__module__,
            __doc__=section.__doc__,
            **fields,
        )
        made.rest = section.rest | (fields.keys() - section.model_fields.keys())
        result: type[Kind] = made
        return result

    return extended
