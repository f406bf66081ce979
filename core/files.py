"""Files and folders that are whole or not there, written beside and renamed last; and hashes of files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import ConvertError


def partial_of(path: Path) -> Path:
    """Where a file or folder is while it is written."""
    return path.with_name(path.name + ".partial")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield `<path>.partial` to write to; it becomes `path` when the block ends well, else it goes."""
    partial = partial_of(path)
    try:
        yield partial
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write to a full disk names no file
            error.filename = str(path)
        raise
    partial.replace(path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `path` whole; text is UTF-8 with its line ends as they are."""
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield `<folder>.partial`, new and empty; it becomes `folder` when the block ends well, else it goes.

    An older `folder` is there until then; a kill in the moment between leaves it to `recover_folder`.
    """
    partial, old = partial_of(folder), folder.with_name(folder.name + ".old")
    for leftover in (partial, old) if folder.exists() else (partial,):  # of a program that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Bring a folder back whose successor was not yet in its place when `whole_folder` was killed."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def file_hash(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, computed side by side: a base has many gigabytes. Raises OSError."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(file_hash, paths))


ADAPTER_CONFIG = "adapter_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ConvertError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConvertError(f"can't read {path}: {error}") from None
    if not isinstance(found, dict):
        raise ConvertError(f"{path} is not a JSON object")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object whole, as the libraries do, with two spaces."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


RECORD, PROMPTS = "rendered_with.json", "prompts.jsonl"  # of a run
TEMPLATE = "chat_template"
# Any of these decides which ids a text becomes.
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")

Rendered = dict[str, str]  # SHA-256 of the template's text, and of files by their names


def rendered_with(template: str, files: Iterable[Path]) -> Rendered:
    """The record of a template and of files; those that aren't there are left out."""
    found = {TEMPLATE: hashlib.sha256(template.encode()).hexdigest()}
    return found | {path.name: file_hash(path) for path in files if path.is_file()}
