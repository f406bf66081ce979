"""Names of a model where each place has a rule of its own: files, llama.cpp, the hub's cache, Ollama."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

# A file's name has 255 bytes; ours add at most "-IQ3_XXS.unverified.json.partial" and the like.
MAX_BYTES = 200
OLLAMA_LENGTH = 80  # types/model/name.go, isValidLen


def bounded(name: str) -> str:
    """A name that leaves room for what is added to it; one that is cut ends in a hash of the whole."""
    if len(name.encode()) <= MAX_BYTES:
        return name
    tail = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name.encode()[: MAX_BYTES - 9].decode("utf-8", "ignore") + "-" + tail


def folder_name(folder: Path) -> str:
    """What a folder is called; in the hub's cache, where that is a commit's hash, the repository's name."""
    path = folder.resolve()
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        return path.parents[1].name.removeprefix("models--").replace("--", "/")
    return path.name


def ollama_name(name: str) -> str:
    """A name that `ollama create` takes: ASCII letters, digits, "-", "_" and ".", the first no mark."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_.]+", "-", plain).strip("-_.")[:OLLAMA_LENGTH].strip("-_.") or "model"
