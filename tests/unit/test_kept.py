"""Kept chats: whose they are, what is kept of them, and what is really gone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chat import kept as kept_module
from chat.kept import RESTORABLE_S, Kept, NoSuchChat
from chat.kept_file import NotKept
from chat.tree import Tree
from core.errors import ChatError
from tests.unit.kept_chats import chat_of, ids, put, said

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "kept" / "chats.sqlite")
    yield made
    made.close()


def on_disk(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


def test_what_was_put_is_read_back_by_any_program(kept: Kept, tmp_path: Path) -> None:
    tree = put(kept, "ada", chat_of("a", "b\0\ud7ff😀", "c"))
    assert kept.read("ada", tree.chat.id).rows() == tree.rows()
    with closing(Kept(tmp_path / "kept" / "chats.sqlite")) as other:
        assert other.read("ada", tree.chat.id).rows() == tree.rows()
        tree.nodes[tree.chat.leaf].message.content = "changed"
        other.put("ada", tree.chat, [tree.nodes[tree.chat.leaf]])
    assert kept.read("ada", tree.chat.id).rows() == tree.rows()


def test_only_the_owner_may_read_the_file(kept: Kept, tmp_path: Path) -> None:
    put(kept, "ada", chat_of("a"))
    folder = tmp_path / "kept"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert len([*folder.iterdir()]) == 3  # the log and its index are there


def test_a_list_has_the_pinned_first_and_then_the_newest(kept: Kept) -> None:
    old, new, pinned = (put(kept, "ada", chat_of("a", "b", changed=at)).chat.id for at in (1.0, 3.0, 2.0))
    kept.change("ada", pinned, pinned=True)
    assert ids(kept) == [pinned, new, old]
    listed = kept.list("ada")[2]
    assert (listed["title"], listed["changed"], listed["pinned"], listed["messages"]) == ("T", 1.0, False, 2)
    assert set(listed) == {"id", "title", "made", "changed", "pinned", "messages"}


def test_nobody_reaches_the_chats_of_another(kept: Kept) -> None:
    """Also with its id, and with the same id for a chat of one's own."""
    hers = put(kept, "ada", chat_of("hers", "b"))
    with pytest.raises(NoSuchChat):
        kept.read("eve", hers.chat.id)
    for attack in (kept.remove, kept.restore, lambda u, c: kept.change(u, c, title="x")):
        with pytest.raises(NoSuchChat):
            attack("eve", hers.chat.id)
    reply = [*hers.nodes.values()][1]
    with pytest.raises(NoSuchChat):
        kept.put("eve", hers.chat, [reply])  # it would hang on a message that only she has
    own = chat_of("own", id=hers.chat.id, title="own")
    own.nodes = {
        node.id: node.model_copy(update={"message": said("own")}) for node in [*hers.nodes.values()][:1]
    }
    put(kept, "eve", own)
    assert kept.take_in("eve", [own]) == 1
    assert kept.search("eve", "hers") == []
    kept.remove("eve", own.chat.id)
    kept.clear("eve")
    assert kept.read("ada", hers.chat.id).rows() == hers.rows()
    assert kept.list("ada")[0]["title"] == "T"
    assert kept.bytes_of("eve") == 0 < kept.bytes_of("ada")


@pytest.mark.parametrize("user", ["", "x" * 1_001, "\ud800"])
def test_nobody_has_no_chats(user: str, kept: Kept) -> None:
    for action in (lambda: kept.list(user), lambda: put(kept, user, chat_of("a")), lambda: kept.clear(user)):
        with pytest.raises(ChatError, match="signed in"):
            action()


def test_names_that_look_alike_are_other_people(kept: Kept) -> None:
    names = ("ada", "Ada", "ada ", "ada\0", "adá", "ada%", "a_a", "' OR 1=1 --")
    for name in names:
        put(kept, name, chat_of(name))
    assert [len(kept.list(name)) for name in names] == [1] * len(names)


@pytest.mark.parametrize("chat", ["", "x" * 65, "../x", "' OR 1=1 --", "a\0", "\ud800", "a\n"])
def test_what_is_no_id_finds_nothing(chat: str, kept: Kept) -> None:
    put(kept, "ada", chat_of("a"))
    for action in (kept.read, kept.remove, kept.restore):
        with pytest.raises(NoSuchChat):
            action("ada", chat)
    assert len(ids(kept)) == 1


def test_a_turn_that_runs_on_leaves_a_new_title_and_pin_alone(kept: Kept) -> None:
    tree = put(kept, "ada", chat_of("a"))
    kept.change("ada", tree.chat.id, title="renamed", pinned=True)
    reply = tree.add(said("b", "assistant"))
    tree.chat.changed, tree.chat.tokens = 9e9, 7
    kept.put("ada", tree.chat, [reply])
    row = kept.read("ada", tree.chat.id).chat
    assert (row.title, row.pinned, row.changed, row.tokens, row.leaf) == ("renamed", True, 9e9, 7, reply.id)
    with pytest.raises(ChatError, match="title"):
        kept.change("ada", tree.chat.id, title="x" * 201)


def test_a_title_by_a_model_does_not_replace_one_by_a_person(kept: Kept) -> None:
    tree = put(kept, "ada", chat_of("a", title="a"))
    kept.change("ada", tree.chat.id, title="by a model", instead_of="a")
    assert kept.list("ada")[0]["title"] == "by a model"
    kept.change("ada", tree.chat.id, title="by another", instead_of="a")
    assert kept.list("ada")[0]["title"] == "by a model"


def test_search_shows_where_it_was_found(kept: Kept) -> None:
    long = put(kept, "ada", chat_of("x " * 100 + "the DRAGON\nÉtude" + " y" * 100, title="first"))
    titled = put(kept, "ada", chat_of("nothing", title="A dragon"))
    put(kept, "ada", chat_of("nothing", title="content"))
    found = {chat["id"]: chat["found"] for chat in kept.search("ada", " dragon ")}
    assert found.keys() == {long.chat.id, titled.chat.id}
    assert found[titled.chat.id] == ""
    assert found[long.chat.id].startswith("…x x")
    assert "the DRAGON Étude y" in found[long.chat.id]
    assert [len(kept.search("ada", text)) for text in ("e\u0301tude", "%", "_", "(", '"', "role")] == [1] + [
        0
    ] * 5
    assert [chat["id"] for chat in kept.search("ada", "Étude X dragon")] == [long.chat.id]
    assert kept.search("ada", "dragon elephant") == []
    kept.remove("ada", titled.chat.id)
    assert len(kept.search("ada", "dragon")) == 1


def test_a_deleted_chat_can_be_had_back_for_a_while(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = put(kept, "ada", chat_of("a"))
    kept.remove("ada", tree.chat.id)
    assert (ids(kept), kept.bytes_of("ada")) == ([], 0)
    for action in (kept.read, kept.remove):
        with pytest.raises(NoSuchChat):
            action("ada", tree.chat.id)
    reply = tree.add(said("a reply that still ran", "assistant"))
    with pytest.raises(NoSuchChat, match="restore it"):
        kept.put("ada", tree.chat, [reply])
    kept.restore("ada", tree.chat.id)
    kept.restore("ada", tree.chat.id)  # a second click
    kept.put("ada", tree.chat, [reply])
    assert kept.read("ada", tree.chat.id).rows() == tree.rows()
    kept.remove("ada", tree.chat.id)
    later = time.time() + RESTORABLE_S + 1
    monkeypatch.setattr(kept_module.time, "time", lambda: later)
    with pytest.raises(NoSuchChat, match="any more"):
        kept.restore("ada", tree.chat.id)


SECRET = "the secret of ada"


@pytest.mark.parametrize("way", ["clear", "remove"])
def test_what_is_deleted_for_good_is_not_on_the_disk(
    way: str, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = put(kept, "ada", chat_of(SECRET, SECRET * 1_000, title=SECRET))
    put(kept, "bob", chat_of("another's"))
    kept.close()
    size = (tmp_path / "kept" / "chats.sqlite").stat().st_size
    assert SECRET.encode() in on_disk(tmp_path / "kept")
    kept.remove("ada", tree.chat.id)
    if way == "clear":
        kept.clear("ada")
    else:
        later = time.time() + RESTORABLE_S + 1
        monkeypatch.setattr(kept_module.time, "time", lambda: later)
        kept.list("bob")
    left = on_disk(tmp_path / "kept")
    assert (tmp_path / "kept" / "chats.sqlite").stat().st_size < size
    assert SECRET.encode() not in left
    assert b"another's" in left
    with pytest.raises(NoSuchChat):  # a reply that still ran has nothing to hang on
        kept.put("ada", tree.chat, [tree.nodes[tree.chat.leaf]])


def test_a_user_has_so_much_room_and_deleting_makes_some(tmp_path: Path) -> None:
    with closing(Kept(tmp_path / "chats.sqlite", limit=50_000)) as kept:
        first = put(kept, "ada", chat_of("x" * 30_000))
        full = chat_of("y" * 30_000)
        with pytest.raises(NotKept, match=r"0\.1 MB.*delete"):
            put(kept, "ada", full)
        assert ids(kept) == [first.chat.id]
        put(kept, "bob", chat_of("y" * 30_000))
        kept.remove("ada", first.chat.id)  # which can be had back while there is room
        put(kept, "ada", full)
        with pytest.raises(NoSuchChat):
            kept.restore("ada", first.chat.id)
        text = full.nodes[full.chat.leaf].message
        for size in (45_000, 10, 45_000):
            text.content = "z" * size
            put(kept, "ada", full)
            assert size < kept.bytes_of("ada") < size + 1_500
        kept.change("ada", full.chat.id, title="renamed")
        with pytest.raises(NotKept):
            kept.take_in("ada", [chat_of("small"), chat_of("v" * 9_000)])
        assert ids(kept) == [full.chat.id]


def test_on_a_disk_that_is_nearly_full_chats_can_be_deleted(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = put(kept, "ada", chat_of("a"))
    monkeypatch.setattr(kept_module, "MIN_FREE", 2**60)
    with pytest.raises(NotKept, match="nearly full"):
        put(kept, "ada", chat_of("b"))
    kept.put("ada", tree.chat, tree.nodes.values())  # no byte more
    kept.remove("ada", tree.chat.id)
    kept.clear("ada")


def test_a_visitors_chats_come_along_once(kept: Kept) -> None:
    one, two = chat_of("a", "b", title="one"), chat_of("c")
    assert kept.take_in("ada", [one, two]) == 2
    assert kept.take_in("ada", [one, two]) == 2
    assert len(ids(kept)) == 2
    assert kept.read("ada", one.chat.id).rows() == one.rows()

    kept.change("ada", one.chat.id, title="renamed since")
    mine = kept.read("ada", one.chat.id)
    mine.chat.changed += 10
    kept.put("ada", mine.chat, [mine.add(said("asked here"))])
    one.add(said("asked there"))  # before what was asked here: title and branch of that stay
    kept.take_in("ada", [one])
    both = kept.read("ada", one.chat.id)
    assert [node.message.content for node in both.nodes.values()] == ["a", "b", "asked here", "asked there"]
    assert (both.chat.title, both.branch()[-1].message.content) == ("renamed since", "asked here")

    one.chat.changed += 20
    one.nodes[[*one.nodes][1]].message.content = "a longer b"
    kept.take_in("ada", [one])
    both = kept.read("ada", one.chat.id)
    assert [node.message.content for node in both.branch()] == ["a", "a longer b", "asked there"]

    kept.remove("ada", one.chat.id)
    kept.take_in("ada", [one])
    assert one.chat.id in ids(kept)


def test_an_older_export_changes_nothing_that_is_there(kept: Kept) -> None:
    tree = put(kept, "ada", chat_of("a", "b", title="one"))
    older = tree.rows()
    reply = tree.nodes[tree.chat.leaf]
    reply.vote, reply.message.content, tree.chat.system_prompt = 1, "b, and more", "Be kind."
    tree.chat.changed += 10
    put(kept, "ada", tree)
    kept.change("ada", tree.chat.id, title="renamed", pinned=True)
    since = kept.read("ada", tree.chat.id).rows()
    for changed in (older["chat"]["changed"], tree.chat.changed):  # also one of the same moment
        kept.take_in("ada", [Tree.read(older["chat"] | {"changed": changed}, older["messages"])])
        assert kept.read("ada", tree.chat.id).rows() == since
    kept.take_in("ada", [Tree.read(older["chat"] | {"changed": changed + 1}, older["messages"])])
    assert kept.read("ada", tree.chat.id).branch()[-1].vote == 0


def test_chats_that_do_not_fit_together_are_refused_and_change_nothing(kept: Kept) -> None:
    tree = put(kept, "ada", chat_of("a", "b"))
    first, second = tree.nodes
    rows = json.loads(json.dumps(tree.rows()).replace(second, "other").replace(first, second))
    with pytest.raises(ChatError, match="same ids"):
        kept.take_in("ada", [chat_of("new"), Tree.read(rows["chat"], rows["messages"])])
    assert ids(kept) == [tree.chat.id]
    assert kept.read("ada", tree.chat.id).rows() == tree.rows()
