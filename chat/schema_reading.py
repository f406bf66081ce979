"""A JSON schema made simple: references replaced by what they mean, parts of one type, everything bounded.

llama.cpp follows all ways on at once in which a reply can fit its grammar. Their number multiplies where
alternatives that begin alike hold alternatives that begin alike, so it is counted here (`ways`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from chat.schema_pattern import rewrite
from core.errors import ChatError

MAX_BYTES = 16 * 1024  # of the schema as JSON: it stands in the prompt too
MAX_DEPTH = 16  # levels of objects, lists and alternatives
MAX_PARTS = 500  # with references replaced: a few lines can mean millions
MAX_LENGTH = 1_000  # characters of a string that has minLength or maxLength
MAX_ITEMS = 100  # of a list that has minItems or maxItems
MAX_WAYS = 128  # with a vocabulary of 262,144 tokens, so many take half a second a token

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_ANNOTATIONS = {
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
}
_ANNOTATIONS |= {"$comment", "$schema", "$id", "$defs", "definitions", "discriminator"}
_NUMBER = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_KEYWORDS: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": _NUMBER,
    "integer": _NUMBER,
    "boolean": set(),
    "null": set(),
}
_KNOWN = set().union(*_KEYWORDS.values()) | {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}


class SchemaError(ChatError):
    """A JSON schema that replies can't be held to, with the reason."""


def depth_of(value: Any) -> int:
    """How deep `value` is nested: 1 for an object of plain values."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, Mapping | list)]:
        depth += 1
        if depth > 1_000:
            break
        level = [v for part in level for v in (part.values() if isinstance(part, Mapping) else part)]
    return depth


class Reading:
    """Reads one schema. Raises SchemaError."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._parts = 0
        self._inside: list[str] = []  # the references being read

    def read(self) -> dict[str, Any]:
        """Return the schema, made simple."""
        simple, ways = self._part(self._root, "the root", 0)
        if max(ways.values()) > MAX_WAYS:
            raise SchemaError(
                f"The JSON schema has {max(ways.values()):,} alternatives that begin alike; "
                f"{MAX_WAYS} are allowed. Give them different types, or names that come first."
            )
        return simple

    def _part(self, schema: Any, where: str, depth: int) -> tuple[dict[str, Any], dict[str, int]]:
        """Return a part, made simple, and in how many ways at once it can begin, by type."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise SchemaError(f"The JSON schema has more than {MAX_PARTS} parts, references replaced.")
        if depth > MAX_DEPTH:
            raise SchemaError(
                f"The JSON schema is nested too deep at {where}; {MAX_DEPTH} levels are allowed."
            )
        if schema is False:
            raise SchemaError(f"The JSON schema allows nothing at {where}.")
        keys = {} if schema is True else {k: v for k, v in schema.items() if not _is_annotation(k)}
        for key in keys.keys() - _KNOWN:
            close = difflib.get_close_matches(key, _KNOWN, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise SchemaError(f"The JSON schema has {key!r} at {where}, which replies can't be held to{hint}")
        if "$ref" in keys:
            return self._reference(self._alone(keys, "$ref", where), where, depth)
        for key in ("anyOf", "oneOf", "allOf"):
            if key in keys:
                parts = self._alone(keys, key, where)
                if key == "allOf" and len(parts) == 1:
                    return self._part(parts[0], where, depth + 1)
                if key == "allOf":
                    raise SchemaError(f"The JSON schema has 'allOf' at {where}; write its parts as one.")
                return self._union(key, parts, where, depth)
        if "enum" in keys or "const" in keys:
            return _values(keys, where)
        types = keys.pop("type", None) or _implied(keys, where)
        if isinstance(types, list):
            each = [{"type": t} | {k: v for k, v in keys.items() if k in _KEYWORDS[t]} for t in types]
            return self._union("anyOf", each, where, depth)
        if wrong := sorted(keys.keys() - _KEYWORDS[types]):
            raise SchemaError(f"The JSON schema has {wrong[0]!r} at {where}, whose type is {types!r}.")
        if types == "object":
            return self._object(keys, where, depth)
        if types == "array":
            return self._array(keys, where, depth)
        return _plain(types, keys, where)

    def _alone(self, keys: dict[str, Any], key: str, where: str) -> Any:
        if others := sorted(keys.keys() - {key}):
            raise SchemaError(
                f"The JSON schema has {others[0]!r} beside {key!r} at {where}; write one of them."
            )
        return keys[key]

    def _reference(self, ref: str, where: str, depth: int) -> tuple[dict[str, Any], dict[str, int]]:
        if not ref.startswith("#/"):
            raise SchemaError(
                f"The JSON schema refers to {ref!r} at {where}: only '#/...' inside itself is read."
            )
        if ref in self._inside:
            raise SchemaError(
                f"The JSON schema has {ref!r} inside itself at {where}; write it as deep as replies may go."
            )
        target: Any = self._root
        for step in ref[2:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            if not (isinstance(target, Mapping) and step in target):
                raise SchemaError(f"The JSON schema refers to {ref!r} at {where}, which it doesn't have.")
            target = target[step]
        if not isinstance(target, Mapping | bool):
            raise SchemaError(f"The JSON schema refers to {ref!r} at {where}, which is no schema.")
        self._inside.append(ref)
        found = self._part(target, where, depth)
        self._inside.pop()
        return found

    def _union(
        self, key: str, parts: list[Any], where: str, depth: int
    ) -> tuple[dict[str, Any], dict[str, int]]:
        read = [self._part(part, f"{where}, alternative {i}", depth + 1) for i, part in enumerate(parts, 1)]
        ways: dict[str, int] = {}
        for _, own in read:
            for kind, count in own.items():
                ways[kind] = ways.get(kind, 0) + count
        return {key: [part for part, _ in read]}, ways

    def _object(self, keys: dict[str, Any], where: str, depth: int) -> tuple[dict[str, Any], dict[str, int]]:
        properties, required = keys.get("properties", {}), keys.get("required", [])
        simple, ways = {"type": "object"} | keys, 1
        if properties:
            read = {
                name: self._part(part, f"{name!r} in {where}" if depth else repr(name), depth + 1)
                for name, part in properties.items()
            }
            simple["properties"] = {name: part for name, (part, _) in read.items()}
            ways = max(max(own.values()) for _, own in read.values())
        rest = keys.get("additionalProperties")
        if isinstance(rest, Mapping) or (rest is True and properties):
            simple["additionalProperties"], own = self._part(rest, f"other names in {where}", depth + 1)
            ways = max(ways, *own.values())
        missing = [name for name in required if name not in properties]
        if missing:
            raise SchemaError(
                f"The JSON schema requires {missing[0]!r} in {where}, and doesn't say what it is."
            )
        return simple, {"object": max(ways, len(properties) - len(required))}

    def _array(self, keys: dict[str, Any], where: str, depth: int) -> tuple[dict[str, Any], dict[str, int]]:
        _bounded(keys, ("minItems", "maxItems"), MAX_ITEMS, "items", where)
        if "prefixItems" in keys:
            if keys.get("items", False) is not False:
                raise SchemaError(f"The JSON schema has 'items' beside 'prefixItems' at {where}; write one.")
            read = [
                self._part(p, f"item {i} of {where}", depth + 1) for i, p in enumerate(keys["prefixItems"], 1)
            ]
            simple: dict[str, Any] = {"type": "array", "prefixItems": [part for part, _ in read]}
            simple |= {"minItems": len(read), "maxItems": len(read)}
            return simple, {"array": max(max(own.values()) for _, own in read)}
        if not keys:
            return {"type": "array"}, {"array": 1}
        item, ways = self._part(keys.get("items", True), f"the items of {where}", depth + 1)
        return {"type": "array"} | keys | {"items": item}, {"array": max(ways.values())}


def _is_annotation(key: str) -> bool:
    return key in _ANNOTATIONS or key.startswith("x-")


def _implied(keys: Mapping[str, Any], where: str) -> Any:
    """Return the type whose keywords these are; every type where there are none."""
    if not keys:
        return [kind for kind in TYPES if kind != "integer"]
    fits = [kind for kind in TYPES if keys.keys() <= _KEYWORDS[kind]]
    if not fits:
        raise SchemaError(f"The JSON schema has no 'type' at {where}. Say one.")
    return fits[0]


def _values(keys: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Read the values of an `enum` or a `const`: those that fit the keywords beside them."""
    values = keys.pop("enum") if "enum" in keys else [keys["const"]]
    if beside := sorted(keys.keys() - {"const", "type", "minLength", "maxLength", *_NUMBER}):
        raise SchemaError(
            f"The JSON schema has {beside[0]!r} beside its values at {where}; write the values."
        )
    from jsonschema.validators import Draft202012Validator  # slow to load

    fitting = [value for value in values if Draft202012Validator(keys).is_valid(value)]
    if not fitting:
        raise SchemaError(f"The JSON schema allows none of its own values at {where}.")
    return {"enum": fitting}, {"string": len(fitting)}


def _plain(kind: str, keys: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, int]]:
    if kind == "string":
        _bounded(keys, ("minLength", "maxLength"), MAX_LENGTH, "characters", where)
        if "pattern" in keys:
            try:
                pattern, ways = rewrite(keys["pattern"])
                if ways > MAX_WAYS:
                    raise ValueError(
                        f"a text can fit it in {ways:,} ways, and {MAX_WAYS} are allowed; write it so that "
                        "no character can belong to two of its parts"
                    )
            except ValueError as error:
                pattern = keys["pattern"]
                raise SchemaError(f"The JSON schema's pattern {pattern!r:.80} at {where}: {error}.") from None
            return {"type": kind} | keys | {"pattern": pattern}, {kind: ways}
    return {"type": kind} | keys, {kind: 1}


def _bounded(keys: Mapping[str, Any], bounds: tuple[str, str], most: int, what: str, where: str) -> None:
    low, high = (keys.get(bound) for bound in bounds)
    for bound, value in zip(bounds, (low, high), strict=True):
        if value is not None and value > most:
            raise SchemaError(
                f"The JSON schema has {bound} {value:,} at {where}; {most:,} {what} are allowed."
            )
    if low is not None and high is not None and low > high:
        raise SchemaError(f"The JSON schema has {bounds[0]} {low} above {bounds[1]} {high} at {where}.")
