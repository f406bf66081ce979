"""A split model is read as one, whichever part is given; a part that is missing or foreign is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import ModelFileError
from core.gguf_model import read_gguf
from core.gguf_reader import first_part, missing_part, model_size
from tests.unit.test_gguf_file import I32, MODEL, U16, gguf, string


def split_gguf(folder: Path, *parts: dict[str, int], name: str = "tiny") -> list[Path]:
    """A split model: `MODEL` without tensors, then files with one each; `parts` change their numbers."""
    paths = []
    for number, changes in enumerate(parts):
        numbers = {"no": number, "count": len(parts), "tensors.count": len(parts) - 1} | changes
        kinds = {"no": U16, "count": U16, "tensors.count": I32}  # as llama.cpp writes and wants them
        keys = {f"split.{key}": (kinds[key], value) for key, value in numbers.items()}
        path = folder / f"{name}-{number + 1:05d}-of-{len(parts):05d}.gguf"
        if number == 0:
            data = gguf(MODEL | keys, counts=(0, len(MODEL) + 3))
            path.write_bytes(data[: data.index(string("output.weight"))])
        else:
            path.write_bytes(gguf(keys).replace(b"output.weight", b"output.%06d" % number))
        paths.append(path)
    return paths


def test_any_part_of_a_split_model_is_the_whole_model(tmp_path: Path) -> None:
    parts = split_gguf(tmp_path, {}, {}, {})
    for path in parts:
        file = read_gguf(path)
        assert file.path == parts[0]
        assert file.parts == tuple(parts)
        assert file.n_params == 2 * 8 * 4
        assert file.file_size == sum(part.stat().st_size for part in parts)
        assert (file.name, file.n_ctx_train, file.vocab.eos_id) == ("Tiny", 2048, 2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{}, {}, {"no": 1}], r"00003-of-00003\.gguf says that it is part 2 of 3"),
        ([{}, {}, {"count": 2}], r"00003-of-00003\.gguf says that it is part 3 of 2"),
        ([{"tensors.count": 272}, {}, {}], "they hold 2 tensors, and the first announces 272"),
    ],
)
def test_parts_of_different_models_are_told(
    tmp_path: Path, parts: list[dict[str, int]], message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_gguf(split_gguf(tmp_path, *parts)[0])


def test_a_missing_a_cut_and_a_renamed_part_are_named(tmp_path: Path) -> None:
    first, second, third = split_gguf(tmp_path, {}, {}, {})
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    with pytest.raises(ModelFileError, match=r"tiny-00002-of-00003\.gguf is cut short"):
        read_gguf(first)
    second.unlink()
    for path in (first, third):
        with pytest.raises(ModelFileError, match=r"part 2 of 3, 'tiny-00002-of-00003\.gguf', is not in '.*'"):
            read_gguf(path)
    first.unlink()
    with pytest.raises(ModelFileError, match=r"part 1 of 3, .*, nor is 1 other; download"):
        read_gguf(third)
    renamed = tmp_path / "model.gguf"
    renamed.write_bytes(whole)
    with pytest.raises(ModelFileError, match="is one of 3 parts of a model, and its name doesn't say which"):
        read_gguf(renamed)


def test_a_name_like_a_parts_is_no_part(tmp_path: Path) -> None:
    for name in ("tiny-00001-of-00001.gguf", "tiny-00003-of-00002.gguf", "tiny-00001-of-00002.gguf"):
        path = tmp_path / name
        path.write_bytes(gguf())
        assert read_gguf(path).parts == (path,)


@pytest.mark.parametrize("keys", [{}, {"split.no": (U16, 0), "split.count": (U16, 1)}], ids=["none", "one"])
def test_a_whole_model_with_the_name_of_a_part_is_a_model(tmp_path: Path, keys: dict[str, Any]) -> None:
    path = tmp_path / "tiny-00001-of-00002.gguf"
    path.write_bytes(gguf(MODEL | keys))
    assert first_part(path) == read_gguf(path).path == path
    assert model_size(path) == path.stat().st_size
    assert missing_part(path) == ""
    part = split_gguf(tmp_path, {}, {}, name="true")[1]
    part.with_name("true-00001-of-00002.gguf").unlink()
    assert first_part(part) is None
