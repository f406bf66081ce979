"""Replies that have to be JSON of a schema: the schema read and bounded, its grammar, the reply checked.

A schema comes from strangers, and what llama.cpp makes of one can take all time and memory, or end the
process. So what has no bound is refused, and what is left is converted and tried in a process of its own. The
converter doesn't know every keyword, and gets some wrong: it is given a simpler schema that means the same,
without `$ref`. What a grammar can't say (`minimum`, `uniqueItems`) is checked when the reply has ended.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from chat.schema_reading import MAX_BYTES, MAX_DEPTH, Reading, SchemaError, depth_of
from core.child import killed_after, worker
from core.prompt import Messages

TIME_LIMIT_S = 10.0  # for a grammar; half a second is usual, most of it the start of the process

_one_at_a_time = threading.Lock()  # a client could ask for a hundred processes


@dataclass(frozen=True)
class Structured:
    """A schema that replies can be held to. `grammar` is GBNF; `schema` has no `$ref`."""

    text: str  # of the schema as it was given
    schema: Mapping[str, Any]
    grammar: str

    def instruct(self, messages: Messages) -> Messages:
        """Return `messages` with the schema at the end of the system message: a model that doesn't know what
        is wanted fills the fields with anything."""
        told = f"Answer with JSON that fits this JSON schema, and nothing else:\n{self.text}"
        has_system = messages[0]["role"] == "system"
        before = f"{messages[0]['content']}\n\n" if has_system else ""
        return [{"role": "system", "content": before + told}, *messages[has_system:]]

    def fault(self, reply: str, finish_reason: str) -> str:
        """Return why `reply` is not what the schema asks for; empty if it is."""
        if finish_reason == "length":
            return "The reply was cut by its length, so it is no whole JSON. Allow more tokens, and retry."
        if finish_reason != "stop":
            return "The reply was stopped, so it is no whole JSON."
        try:
            value = json.loads(reply)
        except (ValueError, RecursionError):
            return "The reply is no JSON. Retry."
        from jsonschema.exceptions import best_match  # loads in a sixth of a second: not at the app's start
        from jsonschema.validators import Draft202012Validator, extend

        # The grammar keeps to patterns; Python's search for one could take forever.
        validator = extend(Draft202012Validator, {"pattern": lambda *_: None})(self.schema)
        try:
            error = best_match(validator.iter_errors(value))
        except RecursionError:
            return "The reply is nested too deep to be checked."
        if error is None:
            return ""
        where = error.json_path.removeprefix("$").removeprefix(".") or "the reply"
        return f"The reply doesn't fit the JSON schema: {where}: {error.message:.200}. Retry."


def structured(schema: Any) -> Structured:
    """Read the JSON schema of replies. Raises SchemaError with a sentence that says what is wrong with it."""
    if not isinstance(schema, Mapping):
        raise SchemaError(f"A JSON schema is an object, not {type(schema).__name__}.")
    if depth_of(schema) > 2 * MAX_DEPTH:  # an object and its properties are two
        raise SchemaError(f"The JSON schema is nested too deep; {MAX_DEPTH} levels are allowed.")
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise SchemaError("The JSON schema has half a character.") from None
    if size > MAX_BYTES:
        raise SchemaError(f"The JSON schema has {size:,} bytes; {MAX_BYTES:,} are allowed.")
    return _structured(text)


@lru_cache(maxsize=64)
def _structured(text: str) -> Structured:
    from jsonschema.exceptions import SchemaError as InvalidSchema
    from jsonschema.validators import Draft202012Validator

    schema = json.loads(text)
    try:
        Draft202012Validator.check_schema(schema)
    except InvalidSchema as error:
        raise SchemaError(f"This is no JSON schema: {error.json_path}: {error.message:.200}.") from None
    simpler = Reading(schema).read()
    return Structured(text, simpler, _grammar(json.dumps(simpler)))


def _grammar(schema: str) -> str:
    """Have a process of its own convert and try `schema`."""
    with _one_at_a_time:
        process = worker(["-m", "core.grammar_worker"])
        with killed_after(process, TIME_LIMIT_S) as late:
            answer, _ = process.communicate(schema.encode())
    if late.is_set():
        raise SchemaError(f"The JSON schema took more than {TIME_LIMIT_S:g} s to read. Write it more simply.")
    if process.returncode or not answer:
        raise SchemaError("llama.cpp can't use this JSON schema. Write it more simply.")
    made: dict[str, str] = json.loads(answer)
    if "error" in made:
        raise SchemaError(f"llama.cpp can't use this JSON schema: {made['error']:.200}.")
    return made["grammar"]
