"""Files and folders that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.files import recover_folder, whole, whole_folder, write_whole


def listing(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fail_half_way(path: Path) -> None:
    path.write_text("half")
    raise OSError(28, "full")


def test_a_file_keeps_what_it_held_when_its_successor_fails(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    with pytest.raises(OSError, match="full"), whole(tmp_path / "a") as partial:
        fail_half_way(partial)
    assert listing(tmp_path) == {"a": "old"}
    write_whole(tmp_path / "a", "new\r\n")
    assert (tmp_path / "a").read_bytes() == b"new\r\n"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "of a killed program").write_text("")
    for content in ("first", "second"):
        with whole_folder(tmp_path / "run") as partial:
            (partial / content).write_text(content)
        assert listing(tmp_path) == {f"run/{content}": content}
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "run") as partial:
        fail_half_way(partial / "third")
    assert listing(tmp_path) == {"run/second": "second"}


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "run") as partial:
        (partial / "kept").write_text("first")
    (tmp_path / "run").rename(tmp_path / "run.old")  # as the kill leaves it, with the new one beside
    (tmp_path / "run.partial").mkdir()
    recover_folder(tmp_path / "run")
    assert listing(tmp_path) == {"run/kept": "first"}
    (tmp_path / "run").rename(tmp_path / "run.old")
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "run"):
        raise OSError(28, "full")
    recover_folder(tmp_path / "run")  # not lost by a program that failed in between
    assert listing(tmp_path) == {"run/kept": "first"}
    recover_folder(tmp_path / "run")
    assert listing(tmp_path) == {"run/kept": "first"}
