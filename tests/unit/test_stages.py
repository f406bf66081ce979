"""What counts as done: the same inputs, and the files as they were left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convert.stages import Stages, key


def test_a_stage_is_done_until_its_inputs_or_its_files_change(tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    made.write_text("weights")
    stages = Stages(tmp_path / "stages.json")
    assert not stages.done("merge", "key 1")
    stages.finish("merge", "key 1", [made], {"base": "full"})
    again = Stages(tmp_path / "stages.json")
    assert again.done("merge", "key 1")
    assert again.note("merge") == {"base": "full"}
    assert not again.done("merge", "key 2")
    made.write_text("other weights")
    assert not again.done("merge", "key 1")
    made.unlink()
    assert not again.done("merge", "key 1")


def test_a_folder_is_done_as_long_as_nothing_in_it_changes(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    stages = Stages(tmp_path / "stages.json")
    stages.finish("merge", "key", [folder])
    assert stages.done("merge", "key")
    (folder / "model.safetensors").write_text("cut")
    assert not stages.done("merge", "key")


@pytest.mark.parametrize(
    "content",
    [
        '{"merge": {"key": "key 1", "ma',
        "[1]",
        '{"merge": "key 1"}',
        '{"merge": {"key": "key 1"}}',
        '{"merge": {"key": "key 1", "made": {"a": 1}, "note": null}}',
        b"\xff",
    ],
)
def test_a_record_that_was_cut_short_means_nothing_is_done(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "stages.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not Stages(tmp_path / "stages.json").done("merge", "key 1")


def test_the_key_changes_with_settings_files_and_names(tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    file.write_text("a")
    before = key(file, "Q5_K_M", None)
    assert before == key(file, "Q5_K_M", None)
    assert before != key(file, "Q4_K_M", None)
    file.write_text("b")
    assert before != key(file, "Q5_K_M", None)
    assert key(tmp_path) != key(file)


def test_content_counts_and_not_the_times(tmp_path: Path) -> None:
    made, large = tmp_path / "made.gguf", 100 * 2**20
    with made.open("wb") as out:
        out.truncate(large)
    stages = Stages(tmp_path / "stages.json")
    stages.finish("merge", before := key(made), [made])
    times = (made.stat().st_atime_ns, made.stat().st_mtime_ns)
    os.utime(made)
    assert key(made) == before
    assert stages.done("merge", before)  # touched, and not changed
    with made.open("r+b") as out:  # one byte between, and the time set back
        out.seek(large // 3)
        out.write(b"x")
    os.utime(made, ns=times)
    assert key(made) != before
    assert not stages.done("merge", before)
