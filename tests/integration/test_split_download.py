"""A split model is one download, with one progress and a hash for each part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.hub_server import COMMIT, CONTENT, Hub, partial, run, serving

PARTS = [f"Q4_K_M/big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


def split_hub(hub: Hub) -> int:
    """Put a model in three parts on the hub; returns its size."""
    hub.files = {name: CONTENT[number:4_000_000] for number, name in enumerate(PARTS)}
    return sum(map(len, hub.files.values()))


def test_all_parts_of_a_split_model_are_one_download(hub: Hub, tmp_path: Path) -> None:
    size = split_hub(hub)
    answer = run(hub, tmp_path, filename=PARTS[1])
    seen = [done for done, _ in answer["seen"]]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, size)
    assert {total for _, total in answer["seen"]} == {size}
    assert answer["located"] == answer["path"]
    first = Path(answer["path"])
    assert first.name == "big-00001-of-00003.gguf"
    for name in PARTS:
        assert (first.parent / Path(name).name).read_bytes() == hub.files[name]
    fetched = [path for method, path, _ in hub.asked if method == "GET"]
    assert fetched == [f"/someone/Tiny-GGUF/resolve/{COMMIT}/{name}" for name in PARTS]


def test_a_stopped_download_of_a_split_model_goes_on_in_the_part_where_it_was(
    hub: Hub, tmp_path: Path
) -> None:
    split_hub(hub)
    answer = run(hub, tmp_path, filename=PARTS[0], stop_at=6_000_000)
    assert "the download of Q4_K_M/big-00001-of-00003.gguf was stopped at 6." in answer["error"]
    done = partial(tmp_path).stat().st_size
    answer = run(hub, tmp_path, filename=PARTS[0])
    assert answer["seen"][0][0] == 4_000_000 + done
    assert hub.ranges == ["bytes=0-", "bytes=0-", f"bytes={done}-", "bytes=0-"]
    assert Path(answer["path"]).is_file()


def test_each_part_has_its_hash_and_a_missing_one_is_named(hub: Hub, tmp_path: Path) -> None:
    split_hub(hub)
    hashes = [hashlib.sha256(content).hexdigest() for content in hub.files.values()]
    wrong = run(hub, tmp_path, filename=PARTS[0], sha256=[*hashes[:2], "0" * 64])
    assert "big-00003-of-00003.gguf is not the expected file" in wrong["error"]
    assert "path" in run(hub, tmp_path, filename=PARTS[0], sha256=hashes)
    four = "big-00001-of-00004.gguf"
    hub.errors["HEAD"] = (404, "EntryNotFound")
    assert f"someone/Tiny-GGUF has no file '{four}'" in run(hub, tmp_path, filename=four)["error"]
