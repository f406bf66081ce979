"""Makes a grammar of a JSON schema by llama.cpp's converter: `python -m core.grammar_worker`.

The schema comes on standard input; one JSON object (`grammar` or `error`) goes to standard output. llama.cpp
tries the grammar here first: should it crash, or take all memory, this process ends and the app doesn't.
Limited is what `core.worker_limits` has.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import llama_cpp
from llama_cpp import llama_grammar

from core.worker_limits import limit_this_process

# Of the characters in a string; llama.cpp's newer converters exclude control characters, which JSON has to
# escape, and llama-cpp-python's doesn't.
CHARACTERS, ESCAPED_CHARACTERS = r'[^"\\]', r'[^"\\\x7F\x00-\x1F]'

MEMORY_BYTES = 512 * 2**20  # above what the process takes when it starts
MAX_GRAMMAR = 96 * 1024  # bytes; 1,000 optional characters take 16


_Converter: Any = llama_grammar.SchemaConverter  # it has no types


class Converter(_Converter):  # type: ignore[misc]
    """llama-cpp-python's converter, whose names and values lost a backslash: a quote in one was no JSON."""

    def _format_literal(self, literal: str) -> str:
        readable = json.dumps(json.loads(literal), ensure_ascii=False)
        formatted: str = super()._format_literal(readable.replace("\\", "\\\\"))
        return formatted

    def convert(self, schema: dict[str, object]) -> str:
        """Return GBNF for a schema without `$ref`."""
        self.visit(schema, "")
        if "char" in self._rules:
            self._rules["char"] = self._rules["char"].replace(CHARACTERS, ESCAPED_CHARACTERS)
        grammar: str = self.format_grammar()
        return grammar


def main() -> None:
    """Answer for one schema."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())  # what llama.cpp says is not for the terminal
    limit_this_process(MEMORY_BYTES)
    sys.stdout.write(json.dumps(_answer(sys.stdin.read())))


def _answer(schema: str) -> dict[str, str]:
    try:
        converter = Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        grammar = converter.convert(json.loads(schema))
    except (AssertionError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        return {"error": str(error) or type(error).__name__}
    if len(grammar.encode()) > MAX_GRAMMAR:
        return {"error": f"its grammar has {len(grammar.encode()):,} bytes, and {MAX_GRAMMAR:,} are allowed"}
    sampler = llama_cpp.llama_sampler_init_grammar(None, grammar.encode(), b"root")
    return {"grammar": grammar} if sampler else {"error": "llama.cpp doesn't take the grammar made of it"}


if __name__ == "__main__":
    main()
