"""The file of kept chats: several writers, kills, full disks, and files of other ages and states."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chat.kept import Kept
from chat.kept_file import APPLICATION, STEPS, NotKept
from chat.tree import Tree
from core.errors import ChatError
from tests.unit.kept_chats import chat_of, ids, put, said

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "kept" / "chats.sqlite")
    yield made
    made.close()


def test_eight_writers_at_once_lose_nothing(kept: Kept, tmp_path: Path) -> None:
    """Four by one object and four by another, as two programs have; in chats of their own, and in one."""
    shared = put(kept, "ada", chat_of("all"))
    failed: list[BaseException] = []

    def write(store: Kept, number: int) -> None:
        try:
            for turn in range(12):
                put(store, f"user {number}", chat_of("a", "b"))
                mine = Tree(shared.chat.model_copy(), shared.nodes.values())
                store.put("ada", mine.chat, [mine.add(said(f"{number} {turn}", "assistant"))])
                store.list("ada")
        except BaseException as error:  # noqa: BLE001 (told below, in the test's own thread)
            failed.append(error)

    with closing(Kept(tmp_path / "kept" / "chats.sqlite")) as other:
        threads = [threading.Thread(target=write, args=((kept, other)[n % 2], n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed, failed
    assert [len(kept.list(f"user {n}")) for n in range(8)] == [12] * 8
    assert len(kept.read("ada", shared.chat.id).nodes) == 1 + 8 * 12 == kept.list("ada")[0]["messages"]


WRITER = """
import sys
from pathlib import Path
from chat.conversation import Message
from chat.kept import Kept
from chat.tree import Tree

kept, tree = Kept(Path(sys.argv[1])), Tree()
while True:
    role = ("user", "assistant")[len(tree.nodes) % 2]
    node = tree.add(Message(role=role, content="x" * 5_000))
    kept.put("ada", tree.chat, [node])
    print(tree.chat.id, node.id, flush=True)
"""


def test_a_kill_at_any_moment_loses_nothing_that_put_returned_for(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    Kept(path).close()
    dice, told = random.Random(), set[tuple[str, str]]()
    for _ in range(2):  # five at once, twice
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            for _ in range(5)
        ]
        firsts = [writer.stdout.readline() for writer in writers if writer.stdout]
        for writer in writers:
            time.sleep(dice.uniform(0, 0.2))
            writer.kill()
        lines = [line for writer in writers for line in writer.communicate()[0].splitlines(keepends=True)]
        told |= {
            (chat, node) for chat, node in (line.split() for line in firsts + lines if line.endswith("\n"))
        }
    with closing(Kept(path)) as kept:
        assert not kept.notice
        there = {(chat, node) for chat in ids(kept) for node in kept.read("ada", chat).nodes}
    assert len({chat for chat, _ in told}) == 10
    assert told <= there


def version_one(path: Path, tree: Tree) -> None:
    """Make a file as the first schema had it: no deleted chats, and no counts beside a chat."""
    rows = tree.rows()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in STEPS[0]:
            db.execute(statement)
        db.execute(f"PRAGMA application_id={APPLICATION}")
        db.execute("PRAGMA user_version=1")
        db.execute("INSERT INTO chats VALUES ('ada', ?, ?)", [tree.chat.id, json.dumps(rows["chat"])])
        db.executemany(
            "INSERT INTO messages VALUES ('ada', ?, ?, ?)",
            [(tree.chat.id, row["id"], json.dumps(row)) for row in rows["messages"]],
        )


def test_a_file_of_an_older_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    tree, empty = chat_of("a", "b"), chat_of()
    path = tmp_path / "chats.sqlite"
    version_one(path, tree)
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "INSERT INTO chats VALUES ('ada', ?, ?)", [empty.chat.id, json.dumps(empty.rows()["chat"])]
        )
        db.commit()
    with closing(Kept(path)) as kept:
        assert kept.read("ada", tree.chat.id).rows() == tree.rows()
        assert {chat["messages"] for chat in kept.list("ada")} == {0, 2}
        assert kept.bytes_of("ada") > len(json.dumps(tree.rows()))
        kept.remove("ada", tree.chat.id)
        kept.restore("ada", tree.chat.id)
    with closing(Kept(path)) as again, closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
        assert len(ids(again)) == 2


def test_a_newer_file_and_one_of_another_program_are_refused_and_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "chats.sqlite", tmp_path / "other.sqlite"
    Kept(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={len(STEPS) + 1}")
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE things (x)")
    for file, reason in ((path, "newer version"), (other, "another program")):
        with pytest.raises(ChatError, match=reason):
            Kept(file)
    with closing(sqlite3.connect(other)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("things",)]


@pytest.mark.parametrize("way", ["no database", "a page of it", "cut short"])
def test_a_broken_file_is_set_aside_with_a_sentence(way: str, tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    with closing(Kept(path)) as kept:
        for _ in range(20):
            put(kept, "ada", chat_of("a" * 3_000))
    content = bytearray(path.read_bytes())
    if way == "no database":
        content = bytearray(b"no database " * 1_000)
    elif way == "a page of it":
        content[4096 * 2 : 4096 * 8] = bytes(4096 * 6)
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    Path(f"{path}-wal").write_bytes(b"x" * 100)
    with closing(Kept(path)) as kept:
        [aside] = tmp_path.glob("*.broken-??????????????*[0-9]")
        assert aside.name in kept.notice
        assert "damaged" in kept.notice
        assert aside.read_bytes() == content
        assert kept.list("ada") == []
        put(kept, "ada", chat_of("a"))
    with closing(Kept(path)) as kept:
        assert not kept.notice
        assert len(kept.list("ada")) == 1


@pytest.mark.parametrize("place", ["/proc/chats/x.sqlite", "file/chats.sqlite", "."])
def test_where_no_file_can_be_made_a_sentence_says_so(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChatError, match=r"[Cc]hats"):
        Kept(tmp_path / place)


FULL = """
import resource, signal, sys
from pathlib import Path
from chat.conversation import Message
from chat.kept import Kept
from chat.tree import Tree

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
kept, tree = Kept(Path(sys.argv[1])), Tree()
kept.put("ada", tree.chat, [tree.add(Message(role="user", content="kept"))])
size = Path(sys.argv[1] + "-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, size + 20_000))
try:
    kept.put("ada", tree.chat, [tree.add(Message(role="assistant", content="x" * 1_000_000))])
except Exception as error:
    print(f"{type(error).__name__}: {error}")
print(kept.list("ada")[0]["messages"])
"""


def test_a_disk_that_takes_no_more_is_told_and_what_was_kept_stays(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    ran = subprocess.run(
        [sys.executable, "-c", FULL, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[0].startswith("NotKept: The disk of this app")
    assert ran.stdout.splitlines()[1:] == ["1"]
    with closing(Kept(path)) as kept:
        [chat] = kept.list("ada")
        assert [node.message.content for node in kept.read("ada", chat["id"]).nodes.values()] == ["kept"]


def test_a_file_that_goes_bad_while_the_app_runs_is_told(kept: Kept, tmp_path: Path) -> None:
    put(kept, "ada", chat_of("a"))
    kept.close()
    (tmp_path / "kept" / "chats.sqlite").write_bytes(b"no database " * 1_000)
    with pytest.raises(NotKept, match="damaged"):
        kept.list("ada")
    shutil.rmtree(tmp_path / "kept")
    with pytest.raises(NotKept, match="can't be opened"):
        put(kept, "ada", chat_of("a"))
