"""database.py: a file that comes whole, is read while it is written, and is never overwritten if it is not ours."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from host import deadline
from snapshots import database
from snapshots.database import Database, rows
from snapshots.errors import StoreFailed, StoreUnusable

INSERT = "INSERT INTO snapshot (key, kind, state, layer, labels, created, updated) VALUES (?, 2, 2, ?, '{}', 1, 1)"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "snapshots.db")


def add(file: Database, key: str) -> None:
    with file.write() as connection:
        connection.execute(INSERT, (key, f"layer{key}"))


def keys(file: Database) -> list[str]:
    with file.read() as connection:
        return [key for (key,) in rows(connection, "SELECT key FROM snapshot ORDER BY number")]


def test_what_is_written_is_on_the_disk(path: str) -> None:
    file = Database(path)
    with file.write() as connection:
        assert rows(connection, "PRAGMA journal_mode") == [("wal",)]
        assert rows(connection, "PRAGMA synchronous") == [(2,)]  # FULL
        assert rows(connection, "PRAGMA foreign_keys") == [(1,)]
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_it_is_there_after_a_restart(path: str) -> None:
    first = Database(path)
    add(first, "a")
    first.close()
    assert keys(Database(path)) == ["a"]


def test_a_copy_of_the_files_is_what_power_loss_leaves(path: str, tmp_path: Path) -> None:
    """The log holds what the file does not hold yet."""
    first = Database(path)
    add(first, "a")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("snapshots.db", "snapshots.db-wal"):
        shutil.copy(tmp_path / name, copy)
    assert keys(Database(str(copy / "snapshots.db"))) == ["a"]


def test_an_error_takes_all_of_a_transaction_back(path: str) -> None:
    file = Database(path)
    with pytest.raises(KeyError), file.write() as connection:
        connection.execute(INSERT, ("a", "layera"))
        raise KeyError
    assert keys(file) == []
    add(file, "b")
    assert keys(file) == ["b"]


def test_readers_write_nothing(path: str) -> None:
    file = Database(path)
    with pytest.raises(StoreFailed, match="readonly"), file.read() as connection:
        connection.execute(INSERT, ("a", "layera"))


def test_a_reader_sees_one_moment_and_blocks_nobody(path: str) -> None:
    file = Database(path)
    add(file, "a")
    add(file, "b")
    with file.read() as connection, contextlib.closing(connection.execute("SELECT key FROM snapshot")) as found:
        assert next(found) == ("a",)
        add(file, "c")
        assert keys(file) == ["a", "b", "c"]
        assert list(found) == [("b",)]


def test_connections_are_used_again_and_closed(path: str) -> None:
    file = Database(path)
    for _ in range(5):
        assert keys(file) == []
    assert len(file._idle) == 1
    with file.read() as connection:
        file.close()
        assert rows(connection, "SELECT * FROM snapshot") == []
    assert file._idle == []


def test_who_waits_too_long_to_write_is_told(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    file, inside, leave = Database(path), threading.Event(), threading.Event()

    def hold() -> None:
        with file.write():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(20)
    try:
        with pytest.raises(deadline.Overdue, match=r"others have been writing to it for 0\.05 s"), file.write():
            pass
        assert keys(file) == []
    finally:
        leave.set()
        thread.join()
    add(file, "a")


def test_another_process_may_have_it_locked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    file, other = Database(path), sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreFailed, match="locked"), file.write():
        pass
    other.execute("ROLLBACK")
    add(file, "a")
    other.close()


# -- files that are not ours -----------------------------------------------------------------------


def refused(path: str, what: str) -> None:
    """It is refused in one line that names the file, and the file stays as it is."""
    before = Path(path).read_bytes()
    with pytest.raises(StoreUnusable, match=what) as caught:
        Database(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"no database\n" * 1000, b"\0" * 4096])
def test_a_file_of_something_else(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    refused(path, "is damaged")


def test_a_database_of_something_else(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (a)")
    refused(path, "is damaged, or no database of snapshots")


@pytest.mark.parametrize("version", [2, 99])
def test_a_newer_version(path: str, version: int) -> None:
    Database(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    refused(path, f"is of version {version}; this program knows version 1: use a newer one")


def test_a_part_of_a_file(path: str) -> None:
    file = Database(path)
    for number in range(200):
        add(file, str(number))
    file.close()
    os.truncate(path, Path(path).stat().st_size // 4096 // 2 * 4096)
    refused(path, "is damaged")


def test_a_page_that_is_overwritten(path: str) -> None:
    file = Database(path)
    for number in range(200):
        add(file, str(number))
    file.close()
    with open(path, "r+b") as target:
        target.seek(4096)
        target.write(b"\xa5" * 4096)
    refused(path, "is damaged")


def test_damage_that_shows_later(path: str) -> None:
    file = Database(path)
    for number in range(200):
        add(file, str(number))
    file.close()
    file = Database(path)
    with open(path, "r+b") as target:
        target.seek(4096)
        target.write(b"\xa5" * (Path(path).stat().st_size - 4096))
    with pytest.raises(StoreUnusable, match="is damaged"):
        keys(file)


def test_a_log_without_its_file(path: str) -> None:
    file = Database(path)
    add(file, "a")
    os.unlink(path)
    with pytest.raises(StoreUnusable, match=re.escape(f"{path} is missing, but its log")):
        Database(path)
    assert not Path(path).exists()


def test_what_a_crash_left_of_making_it(path: str) -> None:
    Path(f"{path}.new").write_bytes(b"half")
    Path(f"{path}.new-journal").write_bytes(b"half")
    file = Database(path)
    assert keys(file) == []
    assert not Path(f"{path}.new").exists()
    assert not Path(f"{path}.new-journal").exists()


def test_odd_paths(tmp_path: Path) -> None:
    for name in ("a b", "q?mode=memory", "h#x", "%41", "ü"):
        directory = tmp_path / name
        directory.mkdir()
        file = Database(str(directory / "snapshots.db"))
        add(file, "a")
        file.close()
        assert keys(Database(str(directory / "snapshots.db"))) == ["a"]


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Database(str(tmp_path / "none" / "snapshots.db"))


def test_a_full_disk(path: str) -> None:
    """SQLite's own limit stands in for it: the error is the same one."""
    file = Database(path)
    add(file, "a")
    file._writer.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreFailed, match="full"):
        for number in range(1000):
            add(file, f"key {number}" * 20)
    there = keys(file)
    with file.write() as connection:
        connection.execute("DELETE FROM snapshot WHERE key <> 'a'")
    file._writer.execute("PRAGMA max_page_count = 1000000")
    add(file, "b")
    assert there[0] == "a"
    assert keys(file) == ["a", "b"]
