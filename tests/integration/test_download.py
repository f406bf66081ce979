"""Downloads from a real HTTP server on loopback: progress, resuming, hashes, and what goes wrong."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.hub_server import CONTENT, Hub, partial, run, serving, start


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


def test_a_download_shows_progress_and_is_found_again(hub: Hub, tmp_path: Path) -> None:
    answer = run(hub, tmp_path)
    assert Path(answer["path"]).read_bytes() == CONTENT
    assert answer["located"] == answer["path"]
    seen = [done for done, _ in answer["seen"]]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, len(CONTENT))
    assert len(seen) > 10
    assert {total for _, total in answer["seen"]} == {len(CONTENT)}
    assert all("/resolve/" in path for _, path, _ in hub.asked)  # nothing is reported to anyone
    assert not list(tmp_path.rglob("*.incomplete"))

    assert run(hub, tmp_path)["seen"] == []  # the second time nothing is fetched
    assert len(hub.ranges) == 1


def test_a_stopped_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    answer = run(hub, tmp_path, stop_at=3_000_000)
    assert "was stopped at" in answer["error"]
    done = partial(tmp_path).stat().st_size
    assert 3_000_000 <= done < 6_000_000
    answer = run(hub, tmp_path)
    assert answer["seen"][0][0] == done
    assert hub.ranges == ["bytes=0-", f"bytes={done}-"]
    assert Path(answer["path"]).read_bytes() == CONTENT


def test_a_killed_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.02
    child = start(hub, tmp_path, None, 0)
    assert child.stderr
    while int(child.stderr.readline()) < 2_000_000:
        pass
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert run(hub, tmp_path)["seen"][0][0] >= 2_000_000
    assert hub.ranges[1] != "bytes=0-"


def test_dropped_connections_are_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    hub.drops = [5_000_000, 0, 4_000_000]
    assert Path(run(hub, tmp_path)["path"]).read_bytes() == CONTENT
    assert len(hub.ranges) == 4


def test_two_downloads_of_one_file_do_not_mix(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.05
    first = start(hub, tmp_path, None, 0)
    assert first.stderr
    first.stderr.readline()
    assert "is being downloaded already" in run(hub, tmp_path)["error"]
    out, _ = first.communicate()
    assert Path(json.loads(out)["path"]).read_bytes() == CONTENT


def test_a_file_with_another_hash_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.content = bytes(len(CONTENT))
    assert "is not the expected file" in run(hub, tmp_path)["error"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_a_hash_that_differs_from_the_hubs_is_noticed_before_the_download(hub: Hub, tmp_path: Path) -> None:
    assert "is not the expected file" in run(hub, tmp_path, sha256="0" * 64)["error"]
    assert hub.ranges == []


def test_a_file_larger_than_the_disk_is_refused_before_the_download(hub: Hub, tmp_path: Path) -> None:
    hub.declared_size = 10**17
    assert "100000000.1 GB of disk" in run(hub, tmp_path)["error"]
    assert hub.ranges == []


def test_a_disk_that_fills_up_keeps_what_is_there(hub: Hub, tmp_path: Path) -> None:
    answer = run(hub, tmp_path, limit=4_000_000)  # the largest file that this process may write
    assert (
        answer["error"]
        == "can't store someone/Tiny-GGUF/tiny-Q4_K_M.gguf: File too large; start it again to go on"
    )
    assert 3_000_000 < partial(tmp_path).stat().st_size <= 4_000_000
    assert Path(run(hub, tmp_path)["path"]).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "no repository 'someone/Tiny-GGUF', or a private one"),
        (404, "EntryNotFound", "someone/Tiny-GGUF has no file 'tiny-Q4_K_M.gguf'"),
        (404, "RevisionNotFound", "someone/Tiny-GGUF has no revision 'main'"),
        (403, "GatedRepo", "/someone/Tiny-GGUF, then sign in with 'hf auth login'"),
        (401, "", "sign in with 'hf auth login'"),
        (503, "", "answered 503; try again later"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_sentence(
    hub: Hub, tmp_path: Path, status: int, code: str, message: str
) -> None:
    hub.errors["HEAD"] = (status, code)
    assert message in run(hub, tmp_path)["error"]


def test_offline_is_said_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    assert "HF_HUB_OFFLINE is set" in run(hub, tmp_path, HF_HUB_OFFLINE="1")["error"]
    assert "can't reach http://127.0.0.1:9 " in run(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")["error"]
    assert hub.asked == []


def test_a_server_that_is_no_hub_is_said_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.is_hub = False
    assert "doesn't answer like the hub" in run(hub, tmp_path)["error"]
