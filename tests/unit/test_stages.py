"""What counts as done: the same inputs, and the files as they were left."""

from __future__ import annotations

from pathlib import Path

from convert.stages import SAMPLE_BYTES, SAMPLES, Stages, fingerprint, key


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


def test_a_record_that_was_cut_short_means_nothing_is_done(tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text('{"merge": {"key": "key 1", "ma')
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


def test_a_large_file_is_known_by_its_size_its_ends_and_what_is_between(tmp_path: Path) -> None:
    file = tmp_path / "large"
    size = (SAMPLES + 10) * SAMPLE_BYTES
    with file.open("wb") as out:
        out.truncate(size)
    whole = fingerprint(file)
    for place in (0, (size - SAMPLE_BYTES) * 32 // (SAMPLES - 1), size - 1):
        with file.open("r+b") as out:
            out.seek(place)
            out.write(b"x")
        changed = fingerprint(file)
        assert changed != whole
        whole = changed
    with file.open("r+b") as out:
        out.truncate(size - 1)
    assert fingerprint(file) != whole
