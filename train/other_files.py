"""Files that hold no rows to be read, each with the command that makes rows of it."""

from __future__ import annotations

import json
import re
import zipfile
from io import BytesIO
from pathlib import Path

from core.command import python_line
from core.errors import TrainError

ZIP, OLD_EXCEL, LFS = b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"version https://git-lfs"
PAGE = re.compile(rb"\s*<(?:!doctype html|html)\b", re.IGNORECASE)
# Endings of spreadsheets; the package with which pandas reads each, and what it calls it.
SHEETS = {
    ".xlsx": ("openpyxl", "openpyxl"),
    ".xlsm": ("openpyxl", "openpyxl"),
    ".xls": ("xlrd", "xlrd"),
    ".ods": ("odfpy", "odf"),
}
TEXTS = (".txt", ".md")
ENDINGS = (*SHEETS, *TEXTS, ".zip", ".arrow")


def refuse_ending(path: Path) -> None:
    """Raise TrainError for a file with an ending of which rows can be made."""
    ending, file = path.suffix.lower(), json.dumps(str(path))
    if ending in SHEETS:
        raise _sheet(path, ending)
    if ending == ".zip":
        raise _archive(path)
    if ending in TEXTS:
        reads = f'datasets.load_dataset("text", data_files={file}, sample_by="paragraph", split="train")'
        made = _made("datasets", f"{reads}.to_json", path.with_suffix(".jsonl"))
        raise TrainError(f"{path} is plain text; to make a row of each paragraph: {made}")
    if ending == ".arrow":
        made = _made(
            "datasets", f"datasets.Dataset.from_file({file}).to_parquet", path.with_suffix(".parquet")
        )
        raise TrainError(f"{path} is a data set in Arrow's own form; to make it Parquet: {made}")


def refuse(path: Path, content: bytes) -> None:
    """Raise TrainError for what is something else than its ending says."""
    if content.startswith(OLD_EXCEL):
        raise _sheet(path, ".xls")
    if content.startswith(ZIP):
        raise _sheet(path, ".xlsx") if "xl/workbook.xml" in _names(content) else _archive(path)
    if content.startswith(LFS):
        raise TrainError(f"{path} is a pointer of Git LFS, not the file; to fetch that: git lfs pull")
    if PAGE.match(content):
        raise TrainError(f"{path} is a web page and no data; download the file itself")


def _sheet(path: Path, ending: str) -> TrainError:
    package, engine = SHEETS[ending]
    reads = f"pandas.read_excel({json.dumps(str(path))}, engine={json.dumps(engine)}).to_csv"
    target = path.with_suffix(".sheet.csv" if path.suffix == ".csv" else ".csv")
    made = _made("pandas", reads, target, ", index=False")
    install = python_line(["-m", "pip", "install", package])
    return TrainError(f"{path} is a spreadsheet; save it as CSV, or let pandas do it: {install} && {made}")


def _archive(path: Path) -> TrainError:
    folder = path.with_suffix("" if path.suffix.lower() == ".zip" else ".unpacked")
    line = python_line(["-m", "zipfile", "-e", str(path), str(folder)])
    return TrainError(f"{path} is an archive; unpack it, and name a file of it: {line}")


def _made(module: str, call: str, target: Path, options: str = "") -> str:
    return python_line(["-c", f"import {module}; {call}({json.dumps(str(target))}{options})"])


def _names(content: bytes) -> list[str]:
    try:
        return zipfile.ZipFile(BytesIO(content)).namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return []
