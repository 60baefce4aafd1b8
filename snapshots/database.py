"""The file that remembers snapshots: an SQLite database that survives a crash at any moment, and a loss of power.

What was written is on the disk when `write` returns (write-ahead log, synchronous=FULL). Readers see one state of the
database from their first row to their last. They do not block who writes, nor each other (https://sqlite.org/wal.html).

The file comes into being whole: it is made under another name. So an empty one, or one without a version, is damaged,
and is not taken for a new one. Nothing is written to a file that is damaged or is of another version.

One connection writes. Others read; each is lent to one reader at a time, in whatever thread it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from host import deadline
from snapshots.errors import StoreFailed, StoreUnusable

VERSION = 1
# How long a writer waits for others; then it fails. A write takes milliseconds.
BUSY_SECONDS = 20.0
# What to do about a damaged file.
_ANEW = "move it away with its -wal and -shm: the next start makes it anew from the pool"
# `AUTOINCREMENT`: a number is never used again, so that numbers tell the order even after removals. A parent is older
# than its children. Only who is being removed has no key; only who is being committed has a target. `noted`: the pool
# has a note of it as it is (note.py). `whole` has a row once nothing is missing of a database before this one.
SCHEMA = """
CREATE TABLE snapshot (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT UNIQUE,
    parent INTEGER REFERENCES snapshot (number),
    kind INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 3),
    state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4),
    layer TEXT NOT NULL UNIQUE,
    image TEXT NOT NULL DEFAULT '',
    chain TEXT NOT NULL DEFAULT '',
    shared INTEGER NOT NULL DEFAULT 0,
    labels TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0,
    empty_size INTEGER NOT NULL DEFAULT 0,
    empty_inodes INTEGER NOT NULL DEFAULT 0,
    noted INTEGER NOT NULL DEFAULT 1,
    target TEXT UNIQUE,
    target_labels TEXT,
    CHECK ((key IS NULL) = (state = 4)),
    CHECK (chain <> '' OR NOT shared),
    CHECK ((target IS NULL) = (state <> 3) AND (target_labels IS NULL) = (target IS NULL))
);
CREATE TABLE whole (since INTEGER NOT NULL);
CREATE INDEX snapshot_parent ON snapshot (parent) WHERE parent IS NOT NULL;
CREATE INDEX snapshot_state ON snapshot (state) WHERE state <> 2;
CREATE INDEX snapshot_image ON snapshot (image);
CREATE INDEX snapshot_chain ON snapshot (chain) WHERE chain <> '';
CREATE INDEX snapshot_noted ON snapshot (noted) WHERE NOT noted;
"""


class Database:
    """A database file, open in this process.

    Every method raises StoreFailed if the file cannot be read or written, and StoreUnusable if it is damaged.
    """

    def __init__(self, path: str) -> None:
        """Open the file, or make it; its directory must be there.

        Raises StoreUnusable if the file is damaged, or is of another version; nothing is changed then.
        """
        self.path = path
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        with _errors(self.path):
            if not os.path.exists(path):
                self._make()
            with beside(path):
                pass
            self._writer = self._connect()
            # The mode stays in the file.
            self._writer.execute("PRAGMA journal_mode = WAL")

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that only reads. Each statement sees one state until its last row is fetched.

        A reader that stays long keeps the log from being taken up again: it grows until the reader ends.
        """
        with _errors(self.path):
            with self._guard:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = self._connect()
                connection.execute("PRAGMA query_only = ON")
            try:
                yield connection
            except BaseException as error:
                # A caller's own error says nothing of the connection, nor does a reader that has seen enough.
                self._take_back(connection, whole=not isinstance(error, sqlite3.Error))
                raise
            self._take_back(connection, whole=True)

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Do a whole transaction in the `with` block. It is on the disk afterwards, or nothing of it if it raised.

        One thread at a time is in such a block. Raises deadline.Overdue if others do not leave in time.
        """
        seconds = deadline.left(BUSY_SECONDS)
        if not self._turn.acquire(timeout=seconds):
            raise deadline.Overdue(f"{self.path}: others have been writing to it for {seconds:.3g} s")
        try:
            with _errors(self.path):
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    # SQLite has rolled back by itself after some errors, for example on a full disk.
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close the file, once who writes has ended. Who still reads may read to the end."""
        with self._turn, self._guard:
            self._closed = True
            for connection in (*self._idle, self._writer):
                connection.close()
            self._idle.clear()

    def _take_back(self, connection: sqlite3.Connection, *, whole: bool) -> None:
        with self._guard:
            if whole and not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _make(self) -> None:
        """Make an empty database under another name, and rename it. What a crash left of an earlier try goes."""
        if os.path.exists(f"{self.path}-wal"):
            # SQLite would take what stands there for a part of the new file.
            raise StoreUnusable(f"{self.path} is missing, but its log {self.path}-wal is there: restore it, or {_ANEW}")
        new = f"{self.path}.new"
        for name in (new, f"{new}-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        os.rename(new, self.path)
        directory = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def beside(path: str) -> Iterator[sqlite3.Connection]:
    """Lend a connection for looking at a file that another process may be writing to, or has left after a crash.

    It is looked first whether the file is one that we know and is whole. All statements see one state. Nothing is
    changed in the file or its log; beside them, SQLite may make the log and its index if they are not there. Raises
    StoreFailed, StoreUnusable, FileNotFoundError.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    uri = f"file:{_quoted(path)}?mode=ro"
    with _errors(path):
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        with contextlib.closing(connection):
            connection.execute("BEGIN")
            _inspect(connection, path)
            yield connection


def _inspect(connection: sqlite3.Connection, path: str) -> None:
    version = rows(connection, "PRAGMA user_version")[0][0]
    if version > VERSION:
        raise StoreUnusable(f"{path} is of version {version}; this program knows version {VERSION}: use a newer one")
    if version != VERSION:
        raise StoreUnusable(f"{path} is damaged, or no database of snapshots: it has no version; {_ANEW}")
    found = rows(connection, "PRAGMA quick_check(1)")[0][0]
    if found != "ok":
        raise StoreUnusable(f"{path} is damaged: {' '.join(found.split())}; {_ANEW}")


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """Make one line of what SQLite and the system say. An error of our own use of SQLite stays what it is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreFailed(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        # The base class itself stands for two cases: the file is malformed, or is no database.
        if type(error) is not sqlite3.DatabaseError:
            raise
        raise StoreUnusable(f"{path} is damaged: {error}; {_ANEW}") from error


def rows(connection: sqlite3.Connection, statement: str, *values: object) -> Sequence[Any]:
    """Return all rows that a statement gives. All are fetched, so it holds no state of the database any more."""
    return connection.execute(statement, values).fetchall()


def _quoted(path: str) -> str:
    """Quote a path for SQLite's URIs (https://sqlite.org/uri.html)."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
