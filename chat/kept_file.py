"""The file of kept chats: written by several at once, brought to the newest schema, set aside where broken.

What a transaction wrote is on the disk when it has ended, also if the app or the machine ends in the next
moment: the journal is a write-ahead log, written through at every commit (https://sqlite.org/wal.html,
`synchronous=FULL`). What is deleted for good is overwritten, in the file and in its log.
"""

from __future__ import annotations

import shlex
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

from core.errors import ChatError

APPLICATION = 0x74326368  # "t2ch": `file` and SQLite's own tools show it
BUSY_S = 15.0  # that another program's write is waited for

# The statements that lead from each version of the schema (PRAGMA user_version) to the next. Never changed: a
# file of any age goes through those that it lacks.
STEPS = (
    (
        """CREATE TABLE chats (
            user TEXT NOT NULL, id TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (user, id)
        )""",
        """CREATE TABLE messages (
            user TEXT NOT NULL, chat TEXT NOT NULL, id TEXT NOT NULL, row TEXT NOT NULL,
            PRIMARY KEY (user, chat, id),
            FOREIGN KEY (user, chat) REFERENCES chats (user, id) ON DELETE CASCADE
        )""",
    ),
    (  # deleted chats can be had back; a list of chats reads no messages
        "ALTER TABLE chats ADD COLUMN removed REAL",  # when; NULL: it wasn't
        "ALTER TABLE chats ADD COLUMN messages INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE chats ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0",  # of the rows, the chat's own too
        """UPDATE chats SET (messages, bytes) = (
            SELECT count(*), length(CAST(chats.row AS BLOB)) + total(length(CAST(messages.row AS BLOB)))
            FROM messages WHERE messages.user = chats.user AND messages.chat = chats.id
        )""",
        "CREATE INDEX removed_chats ON chats (removed) WHERE removed IS NOT NULL",
    ),
)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SENTENCES = {
    sqlite3.SQLITE_FULL: "The disk of this app is full; whoever runs it has to make room there.",
    sqlite3.SQLITE_IOERR: "The disk of this app doesn't take what is written to it, or is full.",
    sqlite3.SQLITE_READONLY: "The file of kept chats can't be written, only read.",
    sqlite3.SQLITE_CANTOPEN: "The file of kept chats can't be opened.",
    sqlite3.SQLITE_BUSY: "Another program holds the file of kept chats. Try again in a moment.",
    **dict.fromkeys(_DAMAGE, "The file of kept chats is damaged. Start the app again: it sets it aside."),
}


class NotKept(ChatError):
    """There is no room, the disk doesn't take it, or the file can't be read."""


class KeptFile:
    """The database at `path`. `notice` is what to tell at the start.

    Raises ChatError where the file can't be made, or is none of this app's, or is a newer one's. A broken one
    is set aside, and a new one begun. Any thread may use it; each takes a connection that no other has.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.notice = path, ""
        self._idle: list[sqlite3.Connection] = []
        self._writing = threading.Lock()  # who waits for it takes turns; SQLite's own waiting doesn't
        try:
            _set_up(path)
        except _Broken as broken:
            aside = _set_aside(path)
            _set_up(path)
            self.notice = (
                f"{path} is damaged ({broken}) and was set aside as {aside.name}; kept chats begin anew. "
                f"What can be saved of it: {shlex.join(['sqlite3', str(aside), '.recover'])}"
            )

    def close(self) -> None:
        """Close the file. Whoever goes on opens it again."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def opened(self, writes: bool = False) -> Iterator[sqlite3.Connection]:
        """Yield a connection in a transaction, which is on the disk when the block has ended well.

        Raises NotKept.
        """
        with self._writing if writes else nullcontext():
            db = self._connection()
            try:
                db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                yield db
                db.execute("COMMIT")
            except sqlite3.Error as error:
                db.close()  # which takes the transaction back
                raise NotKept(_sentence(error)) from None
            except BaseException:
                db.close()
                raise
            self._idle.append(db)

    def scrub(self) -> None:
        """Give free pages back to the disk, and empty the log: both may hold what was deleted."""
        with self.opened(writes=True) as db:
            db.execute("COMMIT")  # both do without a transaction around them
            db.execute("PRAGMA incremental_vacuum").fetchall()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            db.execute("BEGIN")

    def _connection(self) -> sqlite3.Connection:
        with suppress(IndexError):  # another thread may have taken the last one
            return self._idle.pop()
        try:
            return _open(self.path)
        except sqlite3.Error as error:
            raise NotKept(_sentence(error)) from None


class _Broken(Exception):
    """The file isn't a whole database."""


def _open(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time, and that begins no transaction by itself."""
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        for setting in ("foreign_keys=ON", "secure_delete=ON", "synchronous=FULL", "fullfsync=ON"):
            db.execute(f"PRAGMA {setting}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _set_up(path: Path) -> None:
    """Make the file, which only its owner may read, or bring an older one to the newest schema.

    Raises _Broken, and ChatError for a file that can't be used and is whole.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # SQLite's files beside it get the same
        with closing(_open(path)) as db:
            if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise _Broken(" ".join(found.split()))
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only a new file takes it
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("BEGIN IMMEDIATE")  # of two programs that start at once, one brings it up to date
            _migrate(db, path)
            db.execute("COMMIT")
    except sqlite3.Error as error:
        if _code(error) in _DAMAGE:
            raise _Broken(str(error)) from None
        raise ChatError(f"{path}: {_sentence(error)}") from None
    except OSError as error:
        raise ChatError(f"Chats can't be kept in {path}: {error.strerror}.") from None


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Take the steps that the file lacks. Raises ChatError for a newer one, or one of another program."""
    version, application = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
    )
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION and (version or application or tables):
        raise ChatError(f"{path} is a database of another program. Name another file for the chats.")
    if version > len(STEPS):
        raise ChatError(
            f"{path} was written by a newer version of this app (schema {version}; this one knows "
            f"{len(STEPS)}). Update the app, or name another file."
        )
    if version < len(STEPS):
        for step in STEPS[version:]:
            for statement in step:
                db.execute(statement)
        db.execute(f"PRAGMA application_id={APPLICATION}")
        db.execute(f"PRAGMA user_version={len(STEPS)}")


def _set_aside(path: Path) -> Path:
    """Rename a broken file and its log; return its new name. Raises ChatError."""
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06}")
    try:
        for end in ("-wal", "-shm", ""):  # the log first: it would be taken for the new file's
            if (file := Path(f"{path}{end}")).exists():
                file.rename(f"{aside}{end}")
    except OSError as error:
        raise ChatError(f"{path} is damaged, and can't be renamed: {error.strerror}.") from None
    return aside


def _sentence(error: sqlite3.Error) -> str:
    """What to tell somebody whose chat couldn't be read or written."""
    return _SENTENCES.get(_code(error), f"The file of kept chats can't be used ({error}).")


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where Python itself refused."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
