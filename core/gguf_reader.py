"""Reads the header of a GGUF file; every length is checked against the file before it is used.

Covered: truncation, lying counts and lengths, duplicate keys and tensors, bytes that are not UTF-8, unknown
versions. Not covered: whether the weights themselves make sense. Tensors are never loaded. The layout is
llama.cpp's docs/gguf.md and ggml/src/gguf.cpp.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeAlias

from core.errors import ModelFileError

# A string, because array.array takes no [int] at run time before Python 3.12.
Value: TypeAlias = "int | float | bool | str | list[bytes] | array[int] | array[float] | None"

# Real headers end below 40 MB, and the longest known list (the merges of Gemma 4) has 514,906 entries. The
# bounds keep a hostile file from filling the memory or the morning.
MAX_HEADER_BYTES = 256 * 2**20
MAX_STRINGS = 4 * 2**20
MAX_KEYS = 2**16
MAX_TENSORS = 2**16
MAX_DIMENSIONS = 4
_FIRST_READ, _LEADING_READ = 8 * 2**20, 2**16

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_KEPT_STRINGS = "tokenizer.ggml.tokens"  # other lists of strings (the merges) are checked and passed over

# ggml type -> elements a block, bytes a block (gguf-py/gguf/constants.py, GGML_QUANT_SIZES). The size of a
# type that is newer than this table counts as 0, so such a file is only checked up to where its data begins.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What stands before the weights."""

    metadata: dict[str, Value]
    n_tensors: int
    n_params: int  # elements of all tensors
    needed_size: int  # bytes that the file must have for its last tensor to be whole


def read_header(file: BinaryIO, size: int, name: str) -> Header:
    """Read the header of `file`, opened at its beginning and `size` bytes long; `name` is for messages.

    Raises ModelFileError when the header is cut short, damaged, or of a version that llama.cpp doesn't read.
    """
    reader = _Reader(file, size, name)
    reader.pos = 4  # the magic number, which the caller has looked at
    version = reader.u32()
    if version not in (2, 3):
        if version & 0xFFFF == 0:
            raise ModelFileError(f"{name} is a big-endian file; get the usual little-endian one")
        raise ModelFileError(f"{name} is GGUF version {version}; this app reads versions 2 and 3")
    n_tensors, n_keys = reader.u64(), reader.u64()
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        raise reader.damaged(f"its header announces {n_tensors} tensors and {n_keys} keys")
    metadata: dict[str, Value] = {}
    for _ in range(n_keys):
        key = reader.string()
        if key in metadata:
            raise reader.damaged(f"the key {key[:80]!r} is there twice")
        metadata[key] = reader.value(key)
    return _tensors(reader, metadata, n_tensors)


def read_metadata(path: Path) -> dict[str, Value]:
    """The metadata of a file that was read as a GGUF before. Raises ModelFileError and OSError."""
    with path.open("rb") as file:
        return read_header(file, path.stat().st_size, path.name).metadata


def read_leading(file: BinaryIO, size: int, name: str) -> dict[str, Value]:
    """Read the keys before the vocabulary, which takes most of `read_header`'s time, as that does otherwise.

    The sizes of a model stand there: llama.cpp's converter writes them first.
    """
    reader = _Reader(file, size, name, _LEADING_READ)
    reader.pos = 4 + 4 + 8  # the magic number, the version, the number of tensors
    metadata: dict[str, Value] = {}
    for _ in range(min(reader.u64(), MAX_KEYS)):
        key = reader.string()
        if key.startswith("tokenizer."):
            break
        metadata[key] = reader.value(key)
    return metadata


def _tensors(reader: _Reader, metadata: dict[str, Value], count: int) -> Header:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise reader.damaged(f"its alignment {alignment!r} is not a power of two")
    names: set[str] = set()
    n_params = data_size = 0
    for _ in range(count):
        name = reader.string()
        if name in names:
            raise reader.damaged(f"the tensor {name[:80]!r} is there twice")
        names.add(name)
        n_dims = reader.u32()
        if n_dims > MAX_DIMENSIONS:
            raise reader.damaged(f"the tensor {name[:80]!r} has {n_dims} dimensions")
        elements = prod(reader.u64() for _ in range(n_dims))
        block, block_bytes = _BLOCKS.get(reader.u32(), (1, 0))
        n_params += elements
        data_size = max(data_size, reader.u64() + elements // block * block_bytes)
    if n_params >= 2**63:
        raise reader.damaged(f"its tensors add up to {n_params} elements")
    data_start = -(-reader.pos // alignment) * alignment
    return Header(metadata, count, n_params, data_start + data_size if count else reader.pos)


class _Reader:
    def __init__(self, file: BinaryIO, size: int, name: str, first_read: int = _FIRST_READ) -> None:
        self.file, self.size, self.name, self.first_read = file, size, name, first_read
        self.data = b""
        self.pos = 0

    def damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.name} is damaged: {what}; download it again")

    def need(self, count: int) -> None:
        """Make sure that `count` bytes from `pos` on are in `data`. Reads, not mmap: a file that shrinks
        under a memory map would end the whole app with SIGBUS."""
        end = self.pos + count
        if end <= len(self.data):
            return
        if end > self.size:
            raise ModelFileError(
                f"{self.name} is cut short or damaged: it ends inside its own header; download it again"
            )
        if end > MAX_HEADER_BYTES:
            raise self.damaged(f"its header is longer than {MAX_HEADER_BYTES // 2**20} MiB")
        ahead = max(end, 2 * len(self.data), self.first_read)
        self.data += self.file.read(min(ahead, self.size) - len(self.data))
        if end > len(self.data):
            raise ModelFileError(f"{self.name} changed while it was read; try again")

    def take(self, count: int) -> bytes:
        self.need(count)
        self.pos += count
        return self.data[self.pos - count : self.pos]

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def string(self) -> str:
        return self.take(self.u64()).decode("utf-8", "backslashreplace")

    def value(self, key: str) -> Value:
        kind = self.u32()
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(key, self.u32(), self.u64())
        if kind not in _SCALARS:
            raise self.damaged(f"the key {key[:80]!r} has the unknown type {kind}")
        form = struct.Struct(_SCALARS[kind])
        number: int | float | bool = form.unpack(self.take(form.size))[0]
        return number

    def array(self, key: str, kind: int, count: int) -> Value:
        if kind == _STRING:
            return self.strings(key, count)
        if kind not in _SCALARS:  # llama.cpp reads no lists of lists either
            raise self.damaged(f"the list {key[:80]!r} has the unknown type {kind}")
        code = "B" if kind == _BOOL else _SCALARS[kind][1]
        numbers: array[int] | array[float] = array(code)
        numbers.frombytes(self.take(count * struct.calcsize(_SCALARS[kind])))
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers

    def strings(self, key: str, count: int) -> list[bytes] | None:
        """Walk a list of strings. The one hot loop: a vocabulary and its merges are 0.8 million of them."""
        if count > MAX_STRINGS:
            raise self.damaged(f"the list {key[:80]!r} announces {count} entries")
        keep = key == _KEPT_STRINGS
        found: list[bytes] = []
        data, pos, unpack = self.data, self.pos, _U64.unpack_from
        for _ in range(count):
            if pos + 8 > len(data):
                self.pos = pos
                self.need(8)
                data = self.data
            length = unpack(data, pos)[0]
            pos += 8
            if pos + length > len(data):
                self.pos = pos
                self.need(length)
                data = self.data
            if keep:
                found.append(data[pos : pos + length])
            pos += length
        self.pos = pos
        return found if keep else None


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
