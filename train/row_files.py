"""Rows of a file: JSON Lines, JSON, CSV or Parquet, compressed or not, by its name's ending.

| what people have | how it is read |
|---|---|
| UTF-8 with or without a byte order mark, UTF-16 with or without one, UTF-32 with one | as text |
| JSON, Parquet or packed rows under another ending | as what they are |
| CSV with comma, semicolon, tab or bar, a line `sep=;`, quotation marks as `""` or `\\"` | by its header |

`train.json_rows` says what JSON may look like, `train.other_files` what isn't read, and what to do about it.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from io import BytesIO
from pathlib import Path

from core.errors import TrainError
from train import other_files
from train.cells import MISSING_IN_CSV
from train.json_rows import Rows, read_json

MAX_CELL = 2**24  # characters of a CSV's cell; the library allows 128 k
JSON, LINES, CSV = (".json",), (".jsonl", ".ndjson", ".jsonlines"), (".csv", ".tsv")
PARQUET = (".parquet", ".pq")
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}  # by their first bytes
ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".tsv", "each of them with .gz, .zst or .bz2")
MARKS = {  # of the byte order, the longer ones first
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def is_data_file(path: Path) -> bool:
    """Whether the name ends as a file does that people keep rows in."""
    return _kind(path) in (*JSON, *LINES, *CSV, *PARQUET, *other_files.ENDINGS)


def _kind(path: Path) -> str:
    """The ending that says what is in the file, in small letters and without that of its compression."""
    packed = path.suffix.lower() in COMPRESSED
    return (path.with_suffix("") if packed else path).suffix.lower()


def read_rows(path: Path) -> Rows:
    """All rows of a file. Raises TrainError, with the line where there is one."""
    kind = _kind(path)
    if kind not in (*JSON, *LINES, *CSV, *PARQUET):
        other_files.refuse_ending(path)
        raise TrainError(f"{path} ends in {path.suffix!r}; known are {', '.join(ENDINGS)}")
    if path.suffix.lower() in PARQUET:  # which needn't be in memory as a whole
        return _read_parquet(path, path)
    content = _unpacked(path, path.read_bytes())
    if kind in PARQUET or content.startswith(b"PAR1"):
        return _read_parquet(path, BytesIO(content))
    other_files.refuse(path, content)
    text = _text(path, content)
    if kind in CSV and text.lstrip()[:1] in ("{", "["):
        try:
            return read_json(path, text)
        except TrainError:  # a header may begin with a bracket
            return _read_csv(path, text, kind)
    return _read_csv(path, text, kind) if kind in CSV else read_json(path, text)


def _unpacked(path: Path, content: bytes) -> bytes:
    packing = next((name for begin, name in PACKED.items() if content.startswith(begin)), None)
    if packing is None and path.suffix.lower() in COMPRESSED:
        command = shlex.join(["mv", str(path), str(path.with_suffix(""))])
        raise TrainError(f"can't unpack {path}: it isn't packed; give it the name of what it is: {command}")
    if packing is None:
        return content
    import pyarrow  # type: ignore[import-untyped]

    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), packing) as stream:
            unpacked: bytes = stream.read()
    except (OSError, ValueError) as error:
        raise TrainError(f"can't unpack {path}: {' '.join(str(error).split())}") from None
    return unpacked


def _text(path: Path, content: bytes) -> str:
    """What the file holds, decoded; a byte order mark, also one where files were put together, is gone."""
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 0 in content[:2]:  # without a mark; rows begin with a letter of ASCII
        encoding = "utf-16-be" if content[0] == 0 else "utf-16-le"
    try:
        return content.decode(encoding).replace("\n\ufeff", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        file = shlex.quote(str(path))
        raise TrainError(
            f"{path}, line {line}: {error.reason} at byte {error.start}; save it as UTF-8, such as with: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {file} > {shlex.quote(f'utf8-{path.name}')}"
        ) from None


def _read_csv(path: Path, text: str, kind: str) -> Rows:
    """Fields apart by what `sep=` says, or by whichever sign the first line has most of."""
    skipped = 0
    if sign := re.match(r"sep=(.)\r?\n", text):  # Excel's own first line
        text, delimiter, skipped = text[sign.end() :], sign[1], 1
    else:
        delimiter = "\t" if kind == ".tsv" else max(",;\t|", key=text.partition("\n")[0].count)
    try:
        return _records(path, text, delimiter, skipped)
    except TrainError:
        if '\\"' not in text:
            raise
        # Quotation marks behind a backslash, as MySQL and Spark write them: doubled instead.
        doubled = re.sub(r'\\(["\\])', lambda found: '""' if found[1] == '"' else "\\", text)
        try:
            return _records(path, doubled, delimiter, skipped)
        except TrainError:
            pass
        raise


def _records(path: Path, text: str, delimiter: str, skipped: int) -> Rows:
    # newline="" as csv wants it: a line break in quotation marks stays as it is.
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: Rows = []
    try:
        header = [column.strip() for column in next(reader, [])]
        if twice := next((name for name in header if name and header.count(name) > 1), None):
            raise TrainError(f"{path} has two columns {twice!r}; rename one of them")
        for fields in reader:
            if len(fields) not in (0, len(header)):
                raise TrainError(
                    f"{path}, line {reader.line_num + skipped}: {len(fields)} fields for {len(header)} "
                    f'columns; put a text with {_sign(delimiter)} in "quotation marks"'
                )
            if fields:
                cells = (None if field in MISSING_IN_CSV else field for field in fields)
                rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise TrainError(f"{path}, line {reader.line_num + skipped}: {error}") from None
    return rows


def _sign(delimiter: str) -> str:
    return {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}.get(delimiter, repr(delimiter))


def _read_parquet(path: Path, source: Path | BytesIO) -> Rows:
    import pyarrow
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows: Rows = pyarrow.parquet.read_table(source).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise TrainError(f"can't read {path}: {' '.join(str(error).split())}") from None
    return rows
