"""Files that hold no rows to be read, each with the command that makes rows of it."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from io import BytesIO
from pathlib import Path

from core.command import python_line
from core.errors import TrainError

ZIP, OLD_EXCEL, LFS = b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"version https://git-lfs"
PDF, RTF = b"%PDF-", b"{\\rtf"
PAGE = re.compile(rb"\s*<(?:!doctype html|html)\b", re.IGNORECASE)
# Endings of spreadsheets; the package with which pandas reads each, and what it calls it.
SHEETS = {
    ".xlsx": ("openpyxl", "openpyxl"),
    ".xlsm": ("openpyxl", "openpyxl"),
    ".xls": ("xlrd", "xlrd"),
    ".ods": ("odfpy", "odf"),
}
# Endings of documents, and what pandoc calls them.
DOCUMENTS = {
    ".docx": "docx",
    ".pptx": "pptx",
    ".odt": "odt",
    ".rtf": "rtf",
    ".epub": "epub",
    ".fb2": "fb2",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".tex": "latex",
    ".rst": "rst",
    ".org": "org",
    ".ipynb": "ipynb",
}
# What each kind of archive of a document has inside that no other has.
INSIDE = {
    "xl/workbook.xml": ".xlsx",
    "word/document.xml": ".docx",
    "ppt/presentation.xml": ".pptx",
    "META-INF/container.xml": ".epub",
}
OLD_WORD = (".doc", ".ppt")
TEXTS = (".txt", ".md", ".markdown", ".log")
ARCHIVES = {".zip": "zipfile", ".tar": "tarfile", ".tgz": "tarfile"}  # Python's modules, run with -m
ENDINGS = (*SHEETS, *DOCUMENTS, *OLD_WORD, *TEXTS, *ARCHIVES, ".pdf", ".arrow")


def refuse_ending(path: Path) -> None:
    """Raise TrainError for a file with an ending of which rows can be made."""
    ending, file = path.suffix.lower(), json.dumps(str(path))
    if re.search(r"\.tar\.\w+$", path.name.lower()):
        ending = ".tar"
    if ending in SHEETS:
        raise _sheet(path, ending)
    if ending == ".pdf":
        raise _pdf(path)
    if ending in DOCUMENTS:
        raise _document(path, ending)
    if ending in OLD_WORD:
        raise _old_word(path, ending)
    if ending in ARCHIVES:
        raise _archive(path, ARCHIVES[ending])
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
        names = _names(content)
        ending = next((ending for inside, ending in INSIDE.items() if inside in names), "")
        if not ending:
            raise _archive(path, "zipfile")
        raise _sheet(path, ending) if ending in SHEETS else _document(path, ending)
    if content.startswith(PDF):
        raise _pdf(path)
    if content.startswith(RTF):
        raise _document(path, ".rtf")
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


def _pdf(path: Path) -> TrainError:
    rows = f'[{{"text": page.extract_text()}} for page in pypdf.PdfReader({json.dumps(str(path))}).pages]'
    made = _listed("pypdf", rows, path)
    return TrainError(f"{path} is a PDF; to make a row of each page's text: {made}")


def _document(path: Path, ending: str) -> TrainError:
    # In pandoc's sandbox: a document can't bring in other files.
    reads = (
        f'pypandoc.convert_file({json.dumps(str(path))}, "plain", format={json.dumps(DOCUMENTS[ending])}, '
        'extra_args=["--wrap=none", "--sandbox"])'
    )
    rows = f'[{{"text": text}} for text in {reads}.split("\\n\\n") if text.strip()]'
    made = _listed("pypandoc", rows, path, "pypandoc_binary")
    return TrainError(f"{path} is a document; to make a row of each paragraph: {made}")


def _listed(module: str, rows: str, path: Path, package: str = "") -> str:
    """The line that installs a package and writes the list `rows`, which Python makes with it."""
    made = _made(f"datasets, {module}", f"datasets.Dataset.from_list({rows}).to_json", _beside(path))
    return f"{python_line(['-m', 'pip', 'install', package or module])} && {made}"


def _beside(path: Path) -> Path:
    """A file of rows beside the one that isn't."""
    return path.with_suffix(".text.jsonl" if path.suffix == ".jsonl" else ".jsonl")


def _old_word(path: Path, ending: str) -> TrainError:
    line = shlex.join(
        ["soffice", "--headless", "--convert-to", f"{ending[1:]}x", "--outdir", str(path.parent), str(path)]
    )
    return TrainError(f"{path} is of an old kind; save it as {ending}x, such as with LibreOffice: {line}")


def _archive(path: Path, module: str) -> TrainError:
    folder = path.with_suffix("" if path.suffix.lower() in ARCHIVES else ".unpacked")
    line = python_line(["-m", module, "-e", str(path), str(folder)])
    return TrainError(f"{path} is an archive; unpack it, and name a file of it: {line}")


def _made(module: str, call: str, target: Path, options: str = "") -> str:
    return python_line(["-c", f"import {module}; {call}({json.dumps(str(target))}{options})"])


def _names(content: bytes) -> list[str]:
    try:
        return zipfile.ZipFile(BytesIO(content)).namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return []
