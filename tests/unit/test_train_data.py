"""Rows from files and from the hub, and what is said about those that can't be read."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from core.errors import TrainError
from train.data import load_examples
from train.recipe import RECIPES
from train.sections import Data


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def refusal(path: str, **options: object) -> str:
    with pytest.raises(TrainError) as caught:
        load_examples(Data.model_validate({"path": path} | options), seed=0)
    return str(caught.value)


ROWS = [{"text": "first, with a comma"}, {"text": "second\nwith a line break"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, ROWS))),
        ("rows.json", json.dumps(ROWS, indent=1)),
        ("lines.json", "\n".join(map(json.dumps, ROWS)) + "\n"),
        ("rows.csv", 'text,n\n"first, with a comma",1\n"second\nwith a line break",2\n'),
        ("semicolon.csv", '\ufefftext;n\r\nfirst, with a comma;1\r\n"second\nwith a line break";2\r\n'),
    ],
)
def test_files_of_all_kinds_give_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    loaded = load_examples(Data(path=write(tmp_path, name, text)), seed=0)
    assert [example.text for example in loaded.examples] == [row["text"] for row in ROWS]


def test_parquet_is_read_too(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert len(load_examples(Data(path=str(tmp_path / "rows.parquet")), seed=0).examples) == 2
    assert "can't read" in refusal(write(tmp_path, "broken.parquet", "PAR1"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ', "a.jsonl, line 2: Expecting value"),
        ("a.jsonl", '{"text": "a"}\n\n[1]', "a.jsonl, line 3"),
        ("a.jsonl", '{"text": "a"}\n\n3', "line 3: a int instead of an object"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "line 1"),
        ("a.json", '[{"text": "a"}, 3]', "entry 2 of the list is no object"),
        ("a.json", '[{"text": "a"},', "a.json: "),
        ("a.csv", "text,n\na,1\nb,2,3\n", "a.csv, line 3: 3 fields for 2 columns"),
        ("a.csv", 'text,n\n"a,1\n', "a.csv, line"),
        ("a.jsonl", "\n", "is empty: it has no row"),
        ("a.csv", "text\n", "is empty: it has no row"),
        ("a.json", "{}", "is empty: it has no row"),
        ("a.jsonl", '{"text": ""}', "no row of .* can be trained on; no text: 1"),
        ("a.xyz", "x", "ends in '.xyz'; known are .jsonl, .json, .csv, .parquet"),
        ("a.pdf", "x", "is a PDF; to make a row of each page's text: "),
        ("a.xlsx", "x", r"is a spreadsheet; save it as CSV, .* install openpyxl && .*read_excel\("),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    assert re.search(said, refusal(write(tmp_path, name, text)))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\n\xff\n")
    assert "save it as UTF-8" in refusal(str(tmp_path / "a.csv"))
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    assert "a.jsonl, line 2" in refusal(str(tmp_path / "a.jsonl"))


def test_a_file_or_folder_that_is_no_data_set(tmp_path: Path) -> None:
    assert "there is no file" in refusal("data/none.jsonl")
    assert "there is no file" in refusal("/nowhere/at/all")
    assert "is a folder; name a file in it" in refusal(str(tmp_path))


def test_a_limit_takes_the_first_rows_after_a_shuffle() -> None:
    data = Data(path=str(RECIPES / "quotes.jsonl"), limit=40)
    first = load_examples(data, seed=1)
    assert len(first.examples) == 40
    assert first.left_out["beyond data.limit"] == 213
    assert load_examples(data, seed=1) == first
    assert load_examples(data, seed=2).examples != first.examples


def test_without_a_network_the_refusal_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets  # noqa: F401 (its import is not what is timed)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    began = time.monotonic()
    assert "can't reach the hub for the data set 'nobody/nothing'" in refusal("nobody/nothing")
    assert time.monotonic() - began < 5


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, str]]]:
    """A hub on this machine that answers with a status and an error code, by the data set's name."""
    from huggingface_hub import constants

    answers: dict[str, tuple[int, str]] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, code = next(answer for name, answer in answers.items() if name in self.path)
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield answers
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            (403, "GatedRepo"),
            "first accept the terms at http://127.0.0.1:.*/datasets/some/data, then sign in",
        ),
        ((401, "RepoNotFound"), "neither a file nor a public data set 'some/data'"),
        ((404, "RevisionNotFound"), "has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_said(
    answering: dict[str, tuple[int, str]], answer: tuple[int, str], said: str
) -> None:
    answering["some/data"] = answer
    assert re.search(said, refusal("some/data", revision="v9"))
