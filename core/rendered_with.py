"""What a run rendered its rows with, by content: its chat template, its vocabulary, and the rows it kept.

Training notes it beside the run; the conversion compares it with what is there by then, so that what has
changed is named, and not mistaken for an error of the conversion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from core.files import file_hash

RECORD, PROMPTS = "rendered_with.json", "prompts.jsonl"  # of a run
TEMPLATE = "chat_template"
# Any of these decides which ids a text becomes.
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")

Rendered = dict[str, str]  # SHA-256 of the template's text, and of files by their names


def rendered_with(template: str, files: Iterable[Path]) -> Rendered:
    """The record of a template and of files; those that aren't there are left out."""
    found = {TEMPLATE: hashlib.sha256(template.encode()).hexdigest()}
    return found | {path.name: file_hash(path) for path in files if path.is_file()}
