"""A model split over several files, as `llama-gguf-split` names them: `<name>-00001-of-00003.gguf`.

The hub splits what is larger than 50 GB. llama.cpp loads the first part and finds the others beside it by
their names (llama_split_path in src/llama.cpp), so a part that was renamed is no part any more. Whether a
file is a part stands in its header: it may be named like one and be whole.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from core.errors import ModelFileError
from core.gguf_header import read_header

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL)
MAX_PARTS = 4096  # a name that claims more is no part: nobody waits for 99,999 files


def part_names(name: str) -> list[str]:
    """Return the names of all parts of the model that the file `name` is a part of; [`name`] if of none.

    `name` may begin with folders: the parts are in the same one.
    """
    found = _PART.fullmatch(name)
    if not found or not 1 <= int(found[2]) <= int(found[3]) <= MAX_PARTS:
        return [name]
    count = int(found[3])
    return [f"{found[1]}-{number:05d}-of-{count:05d}{found[4]}" for number in range(1, count + 1)]


def model_name(name: str) -> str:
    """Return the file name `name` without its ending, and without its number if it is a part."""
    found = _PART.fullmatch(name)
    return found[1] if found and len(part_names(name)) > 1 else name.removesuffix(".gguf")


def parts(path: Path) -> list[Path]:
    """Return the files of the model that `path` is, or is a part of, the first one first, there or not."""
    files = [path.with_name(name) for name in part_names(path.name)]
    if all(file.is_file() for file in files) or not path.is_file():
        return files
    status = path.stat()
    return [path] if _only_named_so(path, status.st_size, status.st_mtime_ns) else files


@lru_cache(maxsize=64)
def _only_named_so(path: Path, size: int, mtime_ns: int) -> bool:
    """Whether the file `path` has the name of a part and says that it is a whole model."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                return False
            file.seek(0)
            count = read_header(file, size, path.name).metadata.get("split.count", 0)
    except (OSError, ModelFileError):
        return False
    return not isinstance(count, int) or count <= 1


def first_part(path: Path) -> Path | None:
    """Return the file that llama.cpp loads for `path`; None unless all parts are on this disk."""
    files = parts(path)
    return files[0] if all(file.is_file() for file in files) else None


def model_size(path: Path) -> int:
    """Return the bytes of the model that `path` is, or is a part of. Raises OSError for a missing part."""
    return sum(file.stat().st_size for file in parts(path))


def missing_part(path: Path) -> str:
    """Say which part of the model at `path` is not on this disk; empty when all of its parts are, or none."""
    files = parts(path)
    gone = [number for number, file in enumerate(files, 1) if not file.is_file()]
    if not gone or len(gone) == len(files):
        return ""
    others = {1: "", 2: ", nor is 1 other"}.get(len(gone), f", nor are {len(gone) - 1} others")
    return (
        f"part {gone[0]} of {len(files)}, {files[gone[0] - 1].name!r}, is not in {str(path.parent)!r}{others}"
    )


def check_parts(path: Path) -> list[Path]:
    """Return the parts of the model at `path`, all of which are there. Raises ModelFileError."""
    if missing := missing_part(path):
        raise ModelFileError(f"{path.name} is one part of a split model, and {missing}; download that too")
    return parts(path)
