"""Writes the keys of a recipe into docs/train.md: .venv/bin/python -m tests.recipe_keys"""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from train.recipe import SECTIONS, Recipe
from train.refused import REFUSED, VALUES
from train.upstream import Section, Upstream

PAGE = Path(__file__).resolve().parents[1] / "docs" / "train.md"
OWN = ("max_length",)  # of DPOConfig, where it means something else than in SFTConfig
BEGIN, END = "<!-- keys: python -m tests.recipe_keys -->\n", "<!-- end of keys -->"


def tables() -> str:
    """Markdown with one table for each section, and one for the keys beside them."""
    parts = [_table(f"`{name}`", section) for name, section in SECTIONS.items()]
    return "\n".join([*parts, _table("Beside the sections", Recipe), _refused()])


def _refused() -> str:
    """Upstream's keywords that can't be set, together where the reason is the same."""
    rows = ["**Of upstream's, can't be set**", "", "| keys | |", "|---|---|"]
    for section, keys in REFUSED.items():
        shared = REFUSED["SFTConfig"] if section == "DPOConfig" else {}
        for reason in dict.fromkeys(keys.values()):
            like = reason.replace("DPOConfig", "SFTConfig")
            told = (key for key, why in keys.items() if why == reason and shared.get(key) != like)
            if names := ", ".join(f"`{key}`" for key in told):
                rows.append(f"| {section}: {names} | {reason} |")
    for key, values in VALUES.items():
        for reason in dict.fromkeys(values.values()):
            names = ", ".join(f"`{value}...`" for value, why in values.items() if why == reason)
            rows.append(f"| `{key}`: {names} | {reason} |")
    return "\n".join(rows) + "\n"


def _table(title: str, section: type[Section]) -> str:
    parents = [each for each in reversed(section.__mro__) if issubclass(each, Section)]
    source = "\n".join(map(inspect.getsource, parents))
    comments = dict(re.findall(r"^    (\w+): .+?  # (.+)$", source, re.MULTILINE))
    rows = [f"**{title}**", "", "| key | values | if left out | |", "|---|---|---|---|"]
    shared = SECTIONS["SFTConfig"].model_fields if section is SECTIONS["DPOConfig"] else {}
    for name, field in section.model_fields.items():
        if name in shared and shared[name].default == field.default and name not in OWN:
            continue
        if field.alias in SECTIONS or name in SECTIONS:
            continue
        default = "(must be given)" if field.is_required() else _said(field.get_default())
        theirs = issubclass(section, Upstream) and name in section.rest
        comment = comments.get(name, "upstream's" if theirs else "")
        rows.append(f"| `{name}` | {_values(field.annotation)} | {default} | {comment} |")
    if shared:
        rows.append("\nand the keys of `SFTConfig`, but for `packing` and `assistant_only_loss`.")
    return "\n".join(rows) + "\n"


def _said(default: Any) -> str:
    if default is PydanticUndefined or default in (None, "", [], {}):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _values(annotation: Any) -> str:
    """A type in words: its choices, or what kind of value it takes."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(_said(choice) or "`false`" for choice in inside)
    if origin is Annotated:
        return _values(inside[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_values(each) for each in inside if each is not type(None))
    if origin is list:
        return f"a list of {_values(inside[0])}"
    names = {str: "text", bool: "`true`, `false`", int: "a whole number", float: "a number"}
    return names.get(origin or annotation, "keys and values")


def page() -> str:
    """docs/train.md with the tables as they should be."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + tables() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
