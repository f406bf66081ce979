"""A recipe's mistakes in words: the value, the nearest known key, or why a key can't be set."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from train.refused import REFUSED, instead, why_not
from train.upstream import Section

MANY = 6  # choices, from which on the nearest is named
OTHER = {"SFTConfig": "DPOConfig", "DPOConfig": "SFTConfig"}  # of the two trainers' sections
TRAINED = {"SFTConfig": "on answers as they are", "DPOConfig": "on preferences"}

Sections = Mapping[str, type[Section]]


def sentence(error: Mapping[str, Any], sections: Sections, recipe: type[Section]) -> str:
    """One mistake in words, with the value and the nearest known key."""
    place = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        section, *key = map(str, error["loc"])
        if key and (why := REFUSED.get(section, {}).get(key[0])):
            return f"{place}: can't be set: {why}"
        return f"{place}: unknown key; {_known_instead(error['loc'], sections, recipe)}"
    if error["type"] == "missing":
        return f"{place}: is missing"
    if error["type"] == "literal_error" and (said := _choice_instead(error)):
        return f"{place}: {said}"
    given = "" if isinstance(error["input"], dict | list) else f" (given: {error['input']!r})"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}{given}"


def _choice_instead(error: Mapping[str, Any]) -> str:
    """Why a choice of upstream's is refused, or the nearest of many; empty where there is neither."""
    keys, given = [part for part in error["loc"] if isinstance(part, str)], error["input"]
    if why := why_not(keys[-1], given):
        return f"{given!r} is refused: {why}"
    known = re.findall(r"'(.*?)'", error["ctx"]["expected"])
    if len(known) < MANY:
        return ""
    near = difflib.get_close_matches(str(given).lower(), known, n=1, cutoff=0.5)
    if not near:
        return ""
    return (
        f"{given!r} is none of its values; did you mean {near[0]!r}? Known are {', '.join(map(repr, known))}"
    )


def _known_instead(place: tuple[int | str, ...], sections: Sections, recipe: type[Section]) -> str:
    """Which key is right where `place` isn't one: of another section, of other programs, or the nearest."""
    key, inside = str(place[-1]), len(place) > 1
    section = sections.get(str(place[0]), recipe) if inside else recipe
    if inside and (other := OTHER.get(str(place[0]))) and key in sections[other].model_fields:
        return f"it is {other}'s alone: a recipe with {other} in place of {place[0]} trains {TRAINED[other]}"
    homes = [f"{name}.{key}" for name, home in sections.items() if key in home.model_fields]
    if f"SFTConfig.{key}" in homes:
        homes = [home for home in homes if not home.startswith("DPOConfig")]
    if inside and key in recipe.model_fields:
        homes.append(f"{key}, beside the sections")
    if homes:
        return f"say {' or '.join(homes)}"
    if answer := instead(key):
        return answer
    known = [field.alias or name for name, field in section.model_fields.items()]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
