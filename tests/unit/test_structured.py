"""JSON schemas for replies: what is refused and why, how patterns are rewritten, and the finished reply."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.schema_pattern import rewrite
from chat.schema_reading import MAX_BYTES, Reading, SchemaError
from chat.structured import Structured, structured

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def doubled(times: int) -> dict[str, Any]:
    """A few lines that mean two to the power of `times` parts."""
    steps = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(times)}
    return {"$defs": steps | {f"d{times}": {"type": "null"}}, "$ref": "#/$defs/d0"}


ALIKE = {"type": "object", "properties": {"a": {"enum": [f"{i}" for i in range(100)]}}}
LOOP = {
    "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}},
    "$ref": "#/$defs/n",
}
LONG = {"type": "string", "maxLength": 900}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ([], "is an object, not list"),
        ({"type": "strin"}, "no JSON schema: .*'strin'"),
        ({"type": "string", "maxlength": 5}, "'maxlength' at the root.*did you mean 'maxLength'"),
        ({"not": {"type": "null"}}, "'not' at the root"),
        ({"description": "x" * MAX_BYTES}, "bytes; 16,384 are allowed"),
        ({"description": "\ud800"}, "half a character"),
        (nested(17), "nested too deep"),
        (nested(5_000), "nested too deep"),
        (doubled(10), "more than 500 parts"),
        ({"type": "string", "maxLength": 100_000}, "maxLength 100,000 .*1,000 characters"),
        ({"type": "array", "items": {}, "minItems": 101}, "minItems 101 .*100 items"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "minLength 5 above maxLength 4"),
        (
            {"type": "object", "properties": {f"p{i}": LONG for i in range(30)}},
            "bytes, and 98,304 are allowed",
        ),
        ({"anyOf": [ALIKE] * 3}, "300 alternatives that begin alike"),
        ({"$ref": "https://example.com/schema.json"}, "only '#/...' inside itself"),
        ({"enum": [{}], "properties": {"a": {"$ref": "http://x/y"}}}, "'properties' beside its values"),
        ({"$ref": "other.json#/a"}, "only '#/...' inside itself"),
        ({"$ref": "#/$defs/nothing"}, "which it doesn't have"),
        (LOOP, "'#/\\$defs/n' inside itself at 'next'"),
        ({"type": "string", "pattern": "abc"}, "begin with \\^ and end with \\$"),
        ({"type": "string", "pattern": "^([a-z]+)*$"}, "can fit it in 32,768 ways"),
        ({"type": "string", "pattern": "^" + "[a-z]{0,9}" * 20 + "$"}, "can fit it in [0-9,]+ ways"),
        ({"type": "string", "pattern": "^" + "(" * 60 + "a" + ")" * 60 + "$"}, "more than 50 groups"),
        ({"type": "string", "pattern": "^a{1,2000}$"}, "more than 1,000 states"),
        ({"type": "string", "pattern": "^(?=a)a$"}, "can't be used inside it"),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, "requires 'b'"),
        ({"type": "object", "properties": {"a": False}}, "allows nothing at 'a'"),
        ({"type": "string", "enum": [1]}, "none of its own values"),
        ({"type": "null", "minLength": 1}, "'minLength' at the root, whose type is 'null'"),
        ({"anyOf": [{"type": "null"}], "type": "null"}, "'type' beside 'anyOf'"),
    ],
)
def test_what_replies_cannot_be_held_to_is_refused(schema: Any, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        structured(schema)


def test_references_and_lists_of_types_are_written_out() -> None:
    schema = {"$defs": {"a/b": {"type": ["string", "null"], "maxLength": 3, "title": "T"}}}
    schema |= {"properties": {"x": {"$ref": "#/$defs/a~1b"}}, "required": ["x"]}
    assert Reading(schema).read()["properties"] == {
        "x": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}
    }


PATTERNS = [
    r"^\d{1,3}(\.\d+)?$",
    r"^[^,]+$",
    r"^(?:ab|c)*?d$",
    r"^a|b$",
    r"^[\w.+-]+@[a-z]+\.[a-z]{2,}$",
    r"^.\.\$$",
]


@given(st.sampled_from(PATTERNS), st.text("abc.,@$0129 d+-", max_size=8))
def test_a_rewritten_pattern_matches_the_same(pattern: str, text: str) -> None:
    rewritten, _ = rewrite(pattern)
    whole = re.compile(f"^(?:{pattern[1:-1]})$")
    assert bool(whole.search(text)) == bool(re.search(rewritten, text))


@given(st.sampled_from(PATTERNS), st.text(max_size=5))
def test_no_rewritten_pattern_ends_its_string(pattern: str, text: str) -> None:
    if re.search(rewrite(pattern)[0], text):
        assert json.loads(f'"{text}"') == text.rstrip("\n")


@pytest.mark.parametrize(
    ("reply", "finish_reason", "fault"),
    [
        ('{"name": "A", "age": 3}', "stop", ""),
        ('{"name": "A", "age": -3}', "stop", "age: -3 is less than the minimum of 0"),
        ('{"name": "A"', "length", "cut by its length"),
        ('{"name": "A"', "cancelled", "was stopped"),
        ('{"name": "A"', "stop", "no JSON"),
        ("[" * 100_000, "stop", "no JSON"),
    ],
)
def test_a_finished_reply_is_checked(reply: str, finish_reason: str, fault: str) -> None:
    found = structured(PERSON).fault(reply, finish_reason)
    assert fault in found
    assert bool(fault) == bool(found)


def test_the_schema_stands_at_the_end_of_the_system_message() -> None:
    asked = [{"role": "user", "content": "Who?"}]
    made = Structured('{"type":"null"}', {}, "")
    told = made.instruct(asked)
    assert [message["role"] for message in told] == ["system", "user"]
    assert told[0]["content"].endswith('\n{"type":"null"}')
    again = made.instruct([{"role": "system", "content": "Be kind."}, *asked])
    assert again[0]["content"] == f"Be kind.\n\n{told[0]['content']}"
