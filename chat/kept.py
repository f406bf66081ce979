"""The chats of people who signed in: a row a chat and a row a message, and nobody sees another's."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from chat.kept_file import KeptFile, NotKept
from chat.tree import MAX_MESSAGES, Chat, Node, Tree, reason_of
from core.errors import ChatError

USER_BYTES = 100 * 2**20  # of one user's chats: some 50,000 long messages
MIN_FREE = 64 * 2**20  # bytes of the disk: deleting needs some too
RESTORABLE_S = 60 * 60  # that a deleted chat can be had back
MAX_SEARCH = 200  # characters
MAX_NAME = 1_000  # bytes of a user's
BEFORE, AFTER = 30, 90  # characters around what was found

Listed = list[dict[str, Any]]

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_LISTED = ("id", "title", "made", "changed", "pinned", "messages")
_SIZE = "total(length(CAST(row AS BLOB)))"
_OWN = "WHERE user = ? AND id = ?"
_AMONG = "WHERE user = ? AND chat = ? AND id IN (SELECT value FROM json_each(?))"


class NoSuchChat(ChatError):
    """The user has no chat of this id, or has deleted it."""


class Kept:
    """The chats in the file at `path`, of at most `limit` bytes a user. `notice` is to be told at the start.

    Raises ChatError as KeptFile does. Every method may be called from any thread, and raises NotKept where
    the disk or the file doesn't do what it should.
    """

    def __init__(self, path: Path, limit: int = USER_BYTES) -> None:
        self.limit, self._file = limit, KeptFile(path)
        self.notice = self._file.notice
        self._forget()

    def close(self) -> None:
        """Close the file. Whoever goes on opens it again."""
        self._file.close()

    def list(self, user: str) -> Listed:
        """What `user` has, the pinned first, then the newest: id, title, made, changed, pinned, and how many
        messages."""
        self._forget()
        with self._file.opened() as db:
            rows = db.execute(
                "SELECT row, messages FROM chats WHERE user = ? AND removed IS NULL", [_name(user)]
            ).fetchall()
        chats = [json.loads(row) | {"messages": messages} for row, messages in rows]
        shown = [{key: chat[key] for key in _LISTED} for chat in chats]
        return sorted(shown, key=lambda chat: (not chat["pinned"], -chat["changed"]))

    def search(self, user: str, text: str) -> Listed:
        """Those of `list` with all words of `text` in the title or a message; capitals don't matter.

        `found` is the first word with what is around it in a message; empty where only the title has them.
        """
        wanted = unicodedata.normalize("NFC", text[:MAX_SEARCH])
        words = [re.compile(re.escape(word), re.IGNORECASE) for word in wanted.split()]
        # SQLite looks first, for what is the same in JSON and in any Unicode: 100 MB in a third of a second.
        plain = max(re.findall("[0-9A-Za-z]+", wanted), key=len, default="")
        hits = []
        for chat in self.list(user):
            with self._file.opened() as db:
                rows = _rows(db, (user, chat["id"]), plain)
            found = next(filter(None, (_around(words, row) for row in rows)), "")
            if found or all(word.search(unicodedata.normalize("NFC", chat["title"])) for word in words):
                hits.append(chat | {"found": found})
        return hits

    def read(self, user: str, chat: str) -> Tree:
        """The chat. Raises NoSuchChat."""
        with self._file.opened() as db:
            return _read(db, _key(user, chat))

    def put(self, user: str, chat: Chat, nodes: Iterable[Node] = ()) -> None:
        """Keep the chat's row and those messages, new or changed. It is durable when this returns.

        Title and pin of a chat that is there stay: they are changed by `change`, perhaps in another tab.
        Raises NoSuchChat where the chat has been deleted: a reply that still ran doesn't bring it back.
        """
        with self._file.opened(writes=True) as db:
            found = db.execute(f"SELECT row, removed FROM chats {_OWN}", _key(user, chat.id)).fetchone()
            row, removed = found or (None, None)
            if removed is not None:
                raise NoSuchChat("This chat has been deleted; restore it to go on with it.")
            if row is not None:
                before = Chat.model_validate_json(row)
                own = {"title": before.title or chat.title, "pinned": before.pinned, "made": before.made}
                chat = chat.model_copy(update=own)
            self._check_room(db, user, _write(db, _key(user, chat.id), chat, nodes))

    def change(
        self,
        user: str,
        chat: str,
        *,
        title: str | None = None,
        pinned: bool | None = None,
        instead_of: str | None = None,
    ) -> None:
        """Rename or pin the chat; rename it only if it is called `instead_of`, where that is given.

        Raises NoSuchChat.
        """
        with self._file.opened(writes=True) as db:
            row = Chat.model_validate_json(_row(db, _key(user, chat)))
            try:
                keeps = title is None or instead_of not in (None, row.title)
                row.title = row.title if title is None or keeps else title
                row.pinned = row.pinned if pinned is None else pinned
            except ValidationError as error:
                raise ChatError(f"The chat can't be changed: {reason_of(error)}.") from None
            self._check_room(db, user, _write(db, (user, chat), row, []))

    def remove(self, user: str, chat: str) -> None:
        """Delete the chat: for RESTORABLE_S it can be had back. Raises NoSuchChat."""
        with self._file.opened(writes=True) as db:
            _row(db, _key(user, chat))
            db.execute(f"UPDATE chats SET removed = ? {_OWN}", [time.time(), user, chat])

    def restore(self, user: str, chat: str) -> None:
        """Have a deleted chat back. Raises NoSuchChat."""
        with self._file.opened(writes=True) as db:
            back = f"UPDATE chats SET removed = NULL {_OWN} AND ifnull(removed, ?) >= ?"
            since = time.time() - RESTORABLE_S
            if not db.execute(back, [*_key(user, chat), since, since]).rowcount:
                raise NoSuchChat("This chat can't be restored any more.")

    def clear(self, user: str) -> None:
        """Delete all that `user` has, those that could be had back too. Nothing of it is left on the disk."""
        with self._file.opened(writes=True) as db:
            db.execute("DELETE FROM chats WHERE user = ?", [_name(user)])
        self._file.scrub()

    def bytes_of(self, user: str) -> int:
        """How much the chats of `user` take."""
        with self._file.opened() as db:
            sums = "SELECT total(bytes) FROM chats WHERE user = ? AND removed IS NULL"
            return int(db.execute(sums, [_name(user)]).fetchone()[0])

    def take_in(self, user: str, trees: Iterable[Tree]) -> int:
        """Keep these chats, all of them or none, and return how many they are.

        One that is there already gets the messages that it lacks; where both have a message, a title or a
        setting, those of the chat that was changed last stay.
        """
        count = more = 0
        with self._file.opened(writes=True) as db:
            for tree in trees:
                key = _key(user, tree.chat.id)
                with suppress(NoSuchChat):
                    tree = _merged(_read(db, key, removed=True), tree)
                    db.execute(f"UPDATE chats SET removed = NULL {_OWN}", key)
                more += _write(db, key, tree.chat, tree.nodes.values())
                count += 1
            self._check_room(db, user, more)
        return count

    def _check_room(self, db: sqlite3.Connection, user: str, more: int) -> None:
        """Where `more` bytes came, let go of deleted chats of a user who has too much.

        Raises NotKept if it is still too much.
        """
        if more <= 0:
            return
        for without in ("", "DELETE FROM chats WHERE user = ? AND removed IS NOT NULL"):
            if without:
                db.execute(without, [user])
            used = db.execute("SELECT total(bytes) FROM chats WHERE user = ?", [user]).fetchone()[0]
            if used <= self.limit:
                break
        else:
            raise NotKept(
                f"Your chats would take {used / 2**20:,.1f} MB; {self.limit / 2**20:,.1f} MB are kept for "
                "each person. Export old ones, and delete them."
            )
        if shutil.disk_usage(self._file.path.parent).free < MIN_FREE:
            raise NotKept("The disk of this app is nearly full. Delete chats, or whoever runs it makes room.")

    def _forget(self) -> None:
        """Delete for good what was deleted long ago."""
        old = "FROM chats WHERE removed < ?"
        with self._file.opened() as db:
            some = db.execute(f"SELECT 1 {old} LIMIT 1", [time.time() - RESTORABLE_S]).fetchone()
        if some:
            with self._file.opened(writes=True) as db:
                db.execute(f"DELETE {old}", [time.time() - RESTORABLE_S])
            self._file.scrub()


def _key(user: str, chat: str) -> tuple[str, str]:
    """What a chat is found by. Raises NoSuchChat for what can't be an id, ChatError as `_name` does."""
    if not isinstance(chat, str) or not _ID.fullmatch(chat):
        raise NoSuchChat("There is no such chat.")
    return _name(user), chat


def _name(user: str) -> str:
    """The user's own name. Raises ChatError: nobody's chats are kept, and no name is taken for another."""
    with suppress(UnicodeEncodeError):
        if 0 < len(user.encode()) <= MAX_NAME:
            return user
    raise ChatError("Chats are kept here for people who have signed in.")


def _row(db: sqlite3.Connection, key: tuple[str, str], removed: bool = False) -> str:
    """The row of a chat, of a deleted one too if `removed`. Raises NoSuchChat."""
    among = "" if removed else "AND removed IS NULL"
    found = db.execute(f"SELECT row FROM chats {_OWN} {among}", key).fetchone()
    if found is None:
        raise NoSuchChat("There is no such chat any more.")
    return str(found[0])


def _rows(db: sqlite3.Connection, key: tuple[str, str], plain: str = "") -> list[Any]:
    """The rows of a chat's messages that have `plain`, in the order in which they came first."""
    select = "SELECT row FROM messages WHERE user = ? AND chat = ? AND row LIKE ? ORDER BY rowid"
    found = db.execute(select, [*key, f"%{plain}%"])
    return [json.loads(row) for (row,) in found]


def _read(db: sqlite3.Connection, key: tuple[str, str], removed: bool = False) -> Tree:
    return Tree.read(json.loads(_row(db, key, removed)), _rows(db, key))


def _write(db: sqlite3.Connection, key: tuple[str, str], chat: Chat, nodes: Iterable[Node]) -> int:
    """Insert or replace rows, and count them; return by how many bytes they are more.

    Raises NoSuchChat: what they hang on has been deleted.
    """
    by_id = {node.id: node for node in nodes}
    before = {node.parent for node in by_id.values()} - by_id.keys() - {""}
    if before and _among(db, key, before)[0] < len(before):
        raise NoSuchChat("The beginning of this chat has been deleted.")
    count, size = _among(db, key, by_id)
    size += db.execute(f"SELECT {_SIZE} FROM chats {_OWN}", key).fetchone()[0]
    row, rows = _text(chat), [(*key, name, _text(node)) for name, node in by_id.items()]
    put = "INSERT INTO {} VALUES ({}) ON CONFLICT ({}) DO UPDATE SET row = excluded.row"
    db.execute(put.format("chats (user, id, row)", "?, ?, ?", "user, id"), [*key, row])
    names = "user, chat, id"
    db.executemany(put.format(f"messages ({names}, row)", "?, ?, ?, ?", names), rows)
    more: int = sum(len(text.encode()) for text in (row, *(text for *_, text in rows))) - size
    added = [more, len(rows) - count, *key]
    db.execute(f"UPDATE chats SET bytes = bytes + ?, messages = messages + ? {_OWN}", added)
    if db.execute(f"SELECT messages FROM chats {_OWN}", key).fetchone()[0] > MAX_MESSAGES:
        raise ChatError(f"A chat has at most {MAX_MESSAGES:,} messages. Begin a new one.")
    return more


def _among(db: sqlite3.Connection, key: tuple[str, str], ids: Iterable[str]) -> tuple[int, int]:
    """How many of these messages are there, and their bytes."""
    found = db.execute(f"SELECT count(*), {_SIZE} FROM messages {_AMONG}", [*key, json.dumps([*ids])])
    count, size = found.fetchone()
    return count, int(size)


def _merged(own: Tree, other: Tree) -> Tree:
    """Both with all of their messages. Raises ChatError if they aren't of one chat."""
    for name in own.nodes.keys() & other.nodes.keys():
        one, same = own.nodes[name], other.nodes[name]
        if (one.parent, one.message.role) != (same.parent, same.message.role):
            raise ChatError(f"{own.chat.title!r} is kept here already, with other messages of the same ids.")
    older, newer = (own, other) if other.chat.changed > own.chat.changed else (other, own)
    both = Tree(newer.chat, (older.nodes | newer.nodes).values())
    both.check()
    return both


def _text(row: BaseModel) -> str:
    text = json.dumps(row.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace").decode()


def _around(words: list[re.Pattern[str]], row: Any) -> str:
    """Of a message that has all `words`, the first and some characters around it, in a line; or nothing."""
    text = unicodedata.normalize("NFC", row["message"]["content"])
    hits = [hit for word in words if (hit := word.search(text))]
    if not hits or len(hits) < len(words):
        return ""
    start, end = max(0, hits[0].start() - BEFORE), hits[0].end() + AFTER
    line = " ".join(text[start:end].split())
    return f"{'…' if start else ''}{line}{'…' if end < len(text) else ''}"
