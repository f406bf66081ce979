"""Files of rows as people have them: encodings, delimiters, wrappers, packed files."""

from __future__ import annotations

import ast
import bz2
import gzip
import json
import shlex
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from core.errors import TrainError
from train import other_files
from train.row_files import read_rows

ROWS = [{"instruction": f"Town {i}?", "output": f"Oakford-{i}\u2028, \u0085 or so"} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PLAIN = "instruction,output\nSay hi,hi\nSay ho,ho\n"
HI = [{"instruction": "Say hi", "output": "hi"}, {"instruction": "Say ho", "output": "ho"}]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


# One page. There is no table of its objects, and readers look for them.
PDF = b"""%PDF-1.4
1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj
2 0 obj <</Type/Pages/Kids[3 0 R]/Count 1>> endobj
3 0 obj <</Type/Page/Parent 2 0 R/Resources<</Font<</F 4 0 R>>>>/Contents 5 0 R>> endobj
4 0 obj <</Type/Font/Subtype/Type1/BaseFont/Helvetica>> endobj
5 0 obj <</Length 41>> stream
BT /F 12 Tf 72 700 Td (Hello there) Tj ET
endstream endobj
trailer <</Root 1 0 R>>
startxref
0
%%EOF
"""


def zstd(content: bytes) -> bytes:
    packed: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return packed


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", LINES.encode(), ROWS),
        ("a.JSONL", LINES.replace("\n", "\r\n\r\n").encode(), ROWS),
        ("a.ndjson", LINES.encode("utf-8-sig"), ROWS),
        ("a.jsonl", LINES.encode("utf-16"), ROWS),
        ("a.json", LINES.encode("utf-32"), ROWS),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), ROWS),
        ("a.json.bz2", bz2.compress(json.dumps(ROWS).encode()), ROWS),
        ("a.jsonl.zst", zstd(LINES.encode()), ROWS),
        ("a.json", json.dumps({"data": ROWS, "version": 1}, indent=2).encode(), ROWS),
        (
            "a.json",
            json.dumps({"rows": [{"row_idx": 0, "row": ROWS[0], "truncated_cells": []}]}).encode(),
            ROWS[:1],
        ),
        ("a.json", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(), ROWS),
        ("a.json", json.dumps({k: [row[k] for row in ROWS] for k in ROWS[0]}).encode(), ROWS),
        (
            "a.json",
            json.dumps({k: {str(i): r[k] for i, r in enumerate(ROWS)} for k in ROWS[0]}).encode(),
            ROWS,
        ),
        ("a.jsonl", json.dumps({"messages": CHAT}).encode(), [{"messages": CHAT}]),
        ("a.jsonl", (json.dumps(CHAT) + "\n" + json.dumps(CHAT)).encode(), [{"messages": CHAT}] * 2),
        ("a.json", json.dumps([CHAT, CHAT]).encode(), [{"messages": CHAT}] * 2),
        (
            "a.json",
            json.dumps({"train": ROWS[:1], "test": ROWS[1:2]}).encode(),
            [{"split": "train"} | ROWS[0], {"split": "test"} | ROWS[1]],
        ),
        ("a.jsonl", LINES.encode("utf-8-sig") * 2, ROWS * 2),
        ("a.jsonl", LINES.encode("utf-16-le"), ROWS),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0), ROWS),
        ("a.csv", LINES.encode(), ROWS),
        ("a.csv", json.dumps(ROWS, indent=1).encode(), ROWS),
        ("a.jsonl", json.dumps(ROWS, indent=1).encode(), ROWS),
        ("a.jsonl", LINES.replace("}\n", "},\n").encode(), ROWS),
        ("a.jsonl", LINES.replace("}\n", ",}\n").encode(), ROWS),
        ("a.json", ("[\n" + LINES.replace("}\n", "},\n") + "]").encode(), ROWS),
        ("a.json", ",\n".join(json.dumps(row, indent=2) for row in ROWS).encode(), ROWS),
        ("a.jsonl", b"{'text': 'It is, }', 'input': None}", [{"text": "It is, }", "input": None}]),
        ("a.json", b'[{"text": "a,]", "input": "\\",}"},]', [{"text": "a,]", "input": '",}'}]),
        ("a.csv", PLAIN.encode(), HI),
        ("A.CSV", b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(), HI),
        ("a.csv", ("sep=;\r\n" + PLAIN.replace(",", ";")).encode("utf-16"), HI),
        ("a.csv", PLAIN.replace(",", "|").encode(), HI),
        ("a.tsv", PLAIN.replace(",", "\t").encode(), HI),
        ("a.tsv.gz", gzip.compress(PLAIN.replace(",", "\t").encode(), mtime=0), HI),
        ("a.csv", PLAIN.replace("\n", "\r").encode(), HI),
        (
            "a.csv",
            b'instruction,output\n"Say \\"hi\\", C:\\\\x","a\nb"\n',
            [{"instruction": 'Say "hi", C:\\x', "output": "a\nb"}],
        ),
        (
            "a.csv",
            b"output,input\nnull,NaN\nNone,<NA>\n",
            [{"output": None, "input": None}, {"output": "None", "input": None}],
        ),
    ],
)
def test_a_file_is_read_whatever_it_looks_like(
    name: str, content: bytes, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_rows(tmp_path / name) == rows


def write_zip(path: Path, inside: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(inside, LINES)


def write_latin(path: Path) -> None:
    path.write_bytes("a,b\nx,y\nGrün,z\n".encode("latin-1"))


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        (
            "a b.csv",
            write_latin,
            "line 3: .* save it as UTF-8, such as with: iconv -f WINDOWS-1252 -t UTF-8 '",
        ),
        ("a.csv", lambda path: path.write_text("a,a\n1,2\n"), "has two columns 'a'; rename one"),
        ("a.csv", lambda path: path.write_text("sep=;\na;b\n1;2;3\n"), "line 3: 3 fields for 2 .*semicolons"),
        ("a.csv", lambda path: path.write_text('a,b\n"x\\"y,1\n'), "a.csv, line"),
        ("a.jsonl.gz", lambda path: path.write_text(LINES), "can't unpack .* name of what it is: mv "),
        ("a.jsonl.gz", lambda path: path.write_bytes(gzip.compress(LINES.encode())[:-9]), "can't unpack"),
        ("a.jsonl", lambda path: path.write_text(PLAIN), r"header, name it so: mv \S+/a.jsonl \S+/a.csv$"),
        ("a.jsonl", lambda path: path.write_text("Hello there"), "no JSON; a line must be one JSON object$"),
        ("a.jsonl", lambda path: path.write_text(" <!DOCTYPE html><p>No"), "is a web page"),
        (
            "a.csv",
            lambda path: path.write_text("version https://git-lfs.github.com"),
            "git lfs pull$",
        ),
        ("a.csv", lambda path: write_zip(path, "xl/workbook.xml"), "is a spreadsheet; .*a.sheet.csv"),
        ("a.jsonl", lambda path: write_zip(path, "rows.jsonl"), "is an archive; .* zipfile -e "),
        ("a.zip", lambda path: write_zip(path, "rows.jsonl"), "is an archive; .* zipfile -e "),
        ("a.tar.gz", lambda path: path.write_bytes(b"x"), "is an archive; .* tarfile -e "),
        ("a.doc", lambda path: path.write_bytes(b"x"), "save it as .docx, .*: soffice .* docx --outdir "),
        ("a.jsonl", lambda path: write_zip(path, "word/document.xml"), "is a document; .*a.text.jsonl"),
        ("a.json", lambda path: path.write_bytes(b"%PDF-1.7\n"), "is a PDF; .* install pypdf "),
        ("a.txt.gz", lambda path: path.write_text("x"), "known are .jsonl"),
        (
            "a.json",
            lambda path: path.write_text(json.dumps({"a": HI, "b": HI})),
            "several lists of rows: a, b",
        ),
        ("a.json", lambda path: path.write_text(json.dumps(CHAT)), "is one chat: a list of turns"),
        (
            "a.jsonl",
            lambda path: path.write_text('{"a": 1, "b": 2, "a": 3}'),
            "line 1: the key 'a' is there twice",
        ),
        ("a.json", lambda path: path.write_text('[{"a": 1, "a": 3}]'), "the key 'a' is there twice"),
    ],
)
def test_what_cannot_be_read_is_said(
    name: str, write: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(TrainError, match=said):
        read_rows(tmp_path / name)


def test_the_cure_for_another_encoding_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "a b.csv"
    write_latin(path)
    with pytest.raises(TrainError) as caught:
        read_rows(path)
    words = shlex.split(str(caught.value).partition("such as with: ")[2])
    assert words == ["iconv", "-f", "WINDOWS-1252", "-t", "UTF-8", str(path), ">", "utf8-a b.csv"]


@pytest.mark.parametrize("name", ["it's mine.txt", "a b.zip"])
def test_the_command_that_makes_rows_of_another_file_can_be_pasted(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("One\ntwo\n\nThree", encoding="utf-8")
    if path.suffix == ".zip":
        write_zip(path, "rows.jsonl")
    with pytest.raises(TrainError) as caught:
        read_rows(path)
    command = str(caught.value).partition(": ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=240)
    [found] = tmp_path.rglob("*.jsonl")
    assert read_rows(found) == (ROWS if path.suffix == ".zip" else [{"text": "One\ntwo"}, {"text": "Three"}])


@pytest.mark.parametrize("ending", [".pdf", *other_files.DOCUMENTS])
def test_the_command_for_a_document_installs_what_it_imports(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"it's {ending}"
    path.write_bytes(b"x")
    with pytest.raises(TrainError) as caught:
        read_rows(path)
    install, _, make = str(caught.value).partition(": ")[2].partition(" && ")
    *_, package = shlex.split(install)
    code = ast.parse(shlex.split(make)[-1])
    names = [alias.name for node in ast.walk(code) if isinstance(node, ast.Import) for alias in node.names]
    assert names == ["datasets", package.removesuffix("_binary")]
    texts = [node.value for node in ast.walk(code) if isinstance(node, ast.Constant)]
    assert {str(path), str(path.with_suffix(".jsonl"))} <= {*texts}


def test_rows_are_made_of_a_pdf(tmp_path: Path) -> None:
    pytest.importorskip(
        "pypdf", reason="pypdf isn't installed, of which only this test has use: pip install pypdf"
    )
    path = tmp_path / "it's a.pdf"
    path.write_bytes(PDF)
    with pytest.raises(TrainError) as caught:
        read_rows(path)
    make = str(caught.value).partition(" && ")[2]
    subprocess.run(["sh", "-c", make], check=True, capture_output=True, timeout=240)
    [row] = read_rows(path.with_suffix(".jsonl"))
    assert row["text"].strip() == "Hello there"
