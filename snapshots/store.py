"""What a snapshotter remembers: which snapshots there are, on what they stand, and for which layer each stands.

It knows nothing of how a layer is made. Who makes and removes layers tells each step before and after it:

    begin_prepare -> the layer is made -> prepared        if it fails: abandon
    begin_commit  -> its data is flushed -> committed     if it fails: keep_active
    begin_remove  -> the layer is removed -> removed      it may be tried again, at any time

Each call is on the disk when it returns. If the process is killed, `leftovers` tells at the next start which steps were
not ended; the same calls end them, or take them back. One process at a time uses a store.

A store that was just made is not whole: there may have been one before it, and the pool tells what was in it (note.py).
Nobody may be told anything of it, nor change it, before `restore`.

There is one space of keys: a key of an active snapshot or a view, and a name of a committed one, is never used twice at
a time. The rules are containerd's (snapshots/snapshotter.go, snapshots/storage/bolt.go; in 2.x below core/).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import string
import time
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from typing import Any

from snapshots import database as files
from snapshots import filters
from snapshots.database import Database, rows
from snapshots.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreNotWhole,
    StoreUnusable,
)
from snapshots.info import NOTHING, Info, Kind, Snapshot, State, Usage, changed_labels, stored_labels

FILE = "snapshots.db"
# 20 of 36 characters are 103 bits: no two hosts of a pool make the same one.
LAYER_LENGTH = 20
_LAYER_CHARACTERS = string.ascii_lowercase + string.digits

_COLUMNS = """SELECT s.key, p.key, s.kind, s.created, s.updated, s.labels, s.layer, s.state, s.size, s.inodes, s.target,
        s.image, s.chain, s.shared, s.empty_size, s.empty_inodes
    FROM snapshot s LEFT JOIN snapshot p ON p.number = s.parent"""
# A step's first value is the state after it, and its last ones are those of _OF_LAYER.
_THERE = "UPDATE snapshot SET state = ?, target = NULL, target_labels = NULL"
_PREPARED = f"{_THERE}, empty_size = ?, empty_inodes = ?"
_COMMITTED = f"""{_THERE}, kind = ?, key = target, labels = target_labels, created = ?, updated = ?,
    size = ?, inodes = ?, chain = ?, noted = 0"""
_REMOVING = "UPDATE snapshot SET state = ?, key = NULL, parent = NULL"
_OF_LAYER = "WHERE layer = ? AND state = ?"
_BELOW = """WITH RECURSIVE below (image, parent, depth) AS (
        SELECT image, parent, 0 FROM snapshot WHERE layer = ?
        UNION ALL
        SELECT p.image, p.parent, depth + 1 FROM snapshot p JOIN below ON p.number = below.parent
    ) SELECT image FROM below ORDER BY depth"""
# What callers are shown: nobody is told of a snapshot that is still being prepared.
_SHOWN = f"s.state IN ({State.THERE:d}, {State.COMMITTING:d})"


class Store:
    """The snapshots of one directory. Threads may use it at the same time.

    Every method raises StoreFailed if the disk does not take or give what is remembered; then nothing has changed. On a
    full disk all that look go on, and nothing can be removed either. Those that write raise deadline.Overdue if others
    write for too long.
    """

    def __init__(self, root: str) -> None:
        """Open the store in the directory `root`, which is made if it is missing.

        Raises OSError; StoreUnusable if the database is damaged or of another version, and leaves it as it is.
        """
        os.makedirs(root, mode=0o700, exist_ok=True)
        self._database = Database(os.path.join(root, FILE))

    def close(self) -> None:
        """Close the database. Every call ends before."""
        self._database.close()

    # -- what the pool tells -----------------------------------------------------------------------

    def is_whole(self) -> bool:
        """Tell whether nothing is missing that a store of this root had before this one."""
        with self._database.read() as database:
            return bool(rows(database, "SELECT 1 FROM whole"))

    def restore(self, snapshots: Iterable[Snapshot], unnoted: Collection[str] = ()) -> None:
        """Take what an earlier store had, each snapshot after its parent, all of it or nothing: this one is whole then.

        Of the layers `unnoted` the pool has no note, or an old one.
        """
        with self._database.write() as database:
            for snapshot in snapshots:
                info, layer = snapshot.info, snapshot.layer
                number = _committed(database, info.parent) if info.parent else None
                database.execute(
                    "INSERT INTO snapshot (key, parent, kind, state, layer, image, chain, shared, labels, created,"
                    " updated, size, inodes, noted) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(info.name, number, info.kind, State.THERE, layer, snapshot.image, snapshot.chain),
                        *(snapshot.shared, _dumped(info.labels), info.created, info.updated, *snapshot.usage),
                        layer not in unnoted,
                    ),
                )
            database.execute("INSERT INTO whole VALUES (?)", (time.time_ns(),))

    def unnoted(self) -> list[Snapshot]:
        """Return the snapshots of which the pool has no note, or an old one, parents first."""
        return self._there("NOT s.noted AND s.image <> ''")

    def noted(self, snapshot: Snapshot) -> None:
        """Note that the pool has a note of a snapshot as it was given here; it may have changed since."""
        with self._database.write() as database:
            change = "UPDATE snapshot SET noted = 1 WHERE layer = ? AND updated = ?"
            database.execute(change, (snapshot.layer, snapshot.info.updated))

    def shared(self) -> list[Snapshot]:
        """Return the snapshots of layers that all hosts may use, parents first."""
        return self._there("s.shared")

    def told(self) -> list[Snapshot]:
        """Return the snapshots of layers that other hosts made, parents first."""
        return [snapshot for snapshot in self.shared() if snapshot.image != snapshot.layer]

    # -- prepare -----------------------------------------------------------------------------------

    def begin_prepare(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Snapshot:
        """Note that a layer is about to be made for a new active snapshot or view, and take its key.

        Raises NotFound if the parent is unknown, InvalidArgument if it is not committed, AlreadyExists if the key is in
        use (snapshots/storage/bolt.go CreateSnapshot). Nobody is shown the snapshot before `prepared`; Prepare of its
        key fails already, and so does Remove of its parent.
        """
        if kind not in (Kind.ACTIVE, Kind.VIEW):
            raise InvalidArgument(f"snapshot {key!r}: only active ones and views are prepared")
        if not key:
            raise InvalidArgument("a snapshot needs a key that is not empty")
        with self._database.write() as database:
            number = _committed(database, parent) if parent else None
            _check_free(database, key)
            layer, now = _new_layer(), time.time_ns()
            image = layer if kind == Kind.ACTIVE else ""
            database.execute(
                "INSERT INTO snapshot (key, parent, kind, state, layer, image, labels, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, number, kind, State.PREPARING, layer, image, _dumped(labels), now, now),
            )
            return self._of_layer(database, layer)

    def prepared(self, layer: str, empty: Usage = NOTHING) -> Snapshot:
        """Note that the layer was made: its snapshot is there. `empty` is what its file system takes by itself.

        Raises NotFound if it is not being prepared.
        """
        return self._step(layer, State.PREPARING, _PREPARED, State.THERE, *empty)

    def abandon(self, layer: str) -> Snapshot:
        """Note that a layer was not made, or not wholly: its key is free, and what there is of it has yet to go.

        Raises NotFound if it is not being prepared.
        """
        return self._step(layer, State.PREPARING, _REMOVING, State.REMOVING)

    # -- commit ------------------------------------------------------------------------------------

    def begin_commit(self, key: str, name: str, labels: Mapping[str, str]) -> Snapshot:
        """Note that the data of an active snapshot is about to be flushed, and take the name that it is to have.

        It stays the active one until `committed`. Raises AlreadyExists if the name is in use, NotFound if there is no
        such snapshot, FailedPrecondition if it is not active or is being worked on (snapshots/storage/bolt.go
        CommitActive).
        """
        if not name:
            raise InvalidArgument(f"snapshot {key!r}: a committed one needs a name that is not empty")
        with self._database.write() as database:
            _check_free(database, name)
            snapshot = self._settled(database, key, "commit")
            if snapshot.info.kind != Kind.ACTIVE:
                raise FailedPrecondition(f"cannot commit snapshot {key!r}: it is not active")
            database.execute(
                "UPDATE snapshot SET state = ?, target = ?, target_labels = ? WHERE layer = ?",
                (State.COMMITTING, name, _dumped(labels), snapshot.layer),
            )
            return self._of_layer(database, snapshot.layer)

    def committed(self, layer: str, usage: Usage, chain: str = "") -> Snapshot:
        """Note that the data is on the disk: the key goes, the name is there, with the labels of `begin_commit`.

        It is created now, and has the parent that it had. `chain` is the chain id under which it is to be offered to
        the pool. Raises NotFound if the layer is not being committed.
        """
        now = time.time_ns()
        values = (State.THERE, Kind.COMMITTED, now, now, *usage, chain)
        return self._step(layer, State.COMMITTING, _COMMITTED, *values)

    def keep_active(self, layer: str) -> Snapshot:
        """Note that it was not committed: the name is free again. Raises NotFound if it is not being committed."""
        return self._step(layer, State.COMMITTING, _THERE, State.THERE)

    # -- what the pool shares ------------------------------------------------------------------------

    def tell(self, chain: str, parent: str, labels: Mapping[str, str], image: str, usage: Usage) -> Snapshot:
        """Note a committed snapshot that another host made: the layer `image` of the pool stands for `chain`.

        It gets a name that nobody has used. If it was told with this parent before, return that one. Raises NotFound
        if the parent is unknown, InvalidArgument if it is not committed.
        """
        with self._database.write() as database:
            number = _committed(database, parent) if parent else None
            known = f"{_COLUMNS} WHERE s.chain = ? AND s.shared AND s.parent IS ? AND s.state = {State.THERE:d}"
            for row in rows(database, known, chain, number):
                return self._snapshot(row)
            layer, now = _new_layer(), time.time_ns()
            database.execute(
                "INSERT INTO snapshot (key, parent, kind, state, layer, image, chain, shared, labels, created, updated,"
                " size, inodes, noted) VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, 0)",
                (
                    *(f"shared/{layer}/{chain}", number, Kind.COMMITTED, State.THERE, layer, image, chain),
                    *(_dumped(labels), now, now, *usage),
                ),
            )
            return self._of_layer(database, layer)

    def unoffered(self) -> list[Snapshot]:
        """Return the committed snapshots that are to be offered to the pool and are not, parents first."""
        return self._there("s.chain <> '' AND NOT s.shared")

    def offered(self, layer: str, *, shared: bool) -> None:
        """Note what became of an offer: others can find the layer, or it stays this host's own for good."""
        with self._database.write() as database:
            change = "UPDATE snapshot SET shared = 1" if shared else "UPDATE snapshot SET chain = '', shared = 0"
            database.execute(f"{change} {_OF_LAYER}", (layer, State.THERE))

    def shared_images(self) -> set[str]:
        """Return the layers of the pool that this host uses and others may use: of all snapshots, removed ones too."""
        with self._database.read() as database:
            return {image for (image,) in rows(database, "SELECT image FROM snapshot WHERE shared")}

    def stands(self, image: str) -> bool:
        """Tell whether any snapshot stands for a layer of the pool; one that is removed does not."""
        with self._database.read() as database:
            found = rows(database, "SELECT 1 FROM snapshot WHERE image = ? AND state <> ?", image, State.REMOVING)
            return bool(found)

    # -- remove ------------------------------------------------------------------------------------

    def begin_remove(self, key: str) -> Snapshot:
        """Note that a snapshot was removed. Its key is free, its parent may go, and its layer has yet to go.

        Raises NotFound, and FailedPrecondition if it has children or is being worked on (snapshots/storage/bolt.go
        Remove). A child that is being prepared is one, a child that is being removed is none.
        """
        with self._database.write() as database:
            snapshot = self._settled(database, key, "remove")
            children = _children(database, key)
            if children:
                more = f" and {len(children) - 1} more" if len(children) > 1 else ""
                raise FailedPrecondition(f"cannot remove snapshot {key!r}: {children[0]!r}{more} stands on it")
            database.execute(f"{_REMOVING} {_OF_LAYER}", (State.REMOVING, snapshot.layer, State.THERE))
            return self._of_layer(database, snapshot.layer)

    def removed(self, layer: str) -> None:
        """Note that the layer of a removed snapshot has gone. Whoever notes it first is right: there is no error."""
        with self._database.write() as database:
            database.execute("DELETE FROM snapshot WHERE layer = ? AND state = ?", (layer, State.REMOVING))

    # -- look --------------------------------------------------------------------------------------

    def stat(self, key: str) -> Info:
        """Tell what containerd may know of a snapshot. Raises NotFound."""
        return self.find(key).info

    def find(self, key: str) -> Snapshot:
        """Return a snapshot with all that we know of it. Raises NotFound."""
        with self._database.read() as database:
            return self._shown(database, key)

    def of_layer(self, layer: str) -> Snapshot:
        """Return the snapshot whose id is `layer`, in whatever state it is. Raises NotFound."""
        with self._database.read() as database:
            found = rows(database, f"{_COLUMNS} WHERE s.layer = ?", layer)
        if not found:
            raise NotFound(f"no snapshot stands for the layer {layer}")
        return self._snapshot(found[0])

    def images(self, layer: str) -> list[str]:
        """Return the image of the snapshot whose id is `layer`, then those of what is below it, nearest first.

        The image of a view is "". [] if there is no such snapshot.
        """
        with self._database.read() as database:
            return [image for (image,) in rows(database, _BELOW, layer)]

    def children(self, key: str) -> list[str]:
        """Return the keys of what stands on a snapshot, oldest first. What is being prepared counts.

        Raises NotFound.
        """
        with self._database.read() as database:
            self._shown(database, key)
            return _children(database, key)

    def walk(self, *wanted: str) -> Generator[Info, None, None]:
        """Yield each snapshot that one of the filters selects (filters.py), or each if there is no filter.

        They come in the order in which they were prepared, so a parent comes before its children. All are as they were
        when the first one was taken. Others may write meanwhile; but until the last one was taken, or the iterator was
        closed, the database's log grows. Raises InvalidArgument, at once, if a filter is wrong.
        """
        return self._walk(filters.parse(wanted))

    def leftovers(self) -> list[Snapshot]:
        """Return what is not wholly there, and not wholly gone, oldest first: at the start, what a crash left."""
        with self._database.read() as database:
            found = rows(database, f"{_COLUMNS} WHERE s.state <> {State.THERE:d} ORDER BY s.number")
            return [self._snapshot(row) for row in found]

    # -- change ------------------------------------------------------------------------------------

    def update(self, key: str, labels: Mapping[str, str], mask: Sequence[str] = ()) -> Info:
        """Change the labels of a snapshot by the rules of `changed_labels`, and return all of it.

        Only the labels and the time of the update change. Raises NotFound, and InvalidArgument if the mask names
        anything else.
        """
        with self._database.write() as database:
            snapshot = self._shown(database, key)
            changed = _dumped(changed_labels(snapshot.info.labels, labels, mask))
            change = "UPDATE snapshot SET labels = ?, updated = ?, noted = 0 WHERE layer = ?"
            database.execute(change, (changed, time.time_ns(), snapshot.layer))
            return self._of_layer(database, snapshot.layer).info

    def store_usage(self, layer: str, usage: Usage) -> None:
        """Remember what a layer takes. Raises NotFound if no snapshot stands for it."""
        with self._database.write() as database:
            change = "UPDATE snapshot SET size = ?, inodes = ? WHERE layer = ?"
            if not database.execute(change, (*usage, layer)).rowcount:
                raise NotFound(f"no snapshot stands for the layer {layer}")

    # ----------------------------------------------------------------------------------------------

    def _step(self, layer: str, state: State, change: str, *values: object) -> Snapshot:
        """Change the one snapshot that stands for a layer, from the state in which it must be."""
        with self._database.write() as database:
            done = database.execute(f"{change} {_OF_LAYER}", (*values, layer, state))
            if not done.rowcount:
                raise NotFound(f"no snapshot that is {state.name.lower()} stands for the layer {layer}")
            return self._of_layer(database, layer)

    def _there(self, condition: str) -> list[Snapshot]:
        """Return the snapshots that nobody makes, commits or removes and for which a condition of SQL holds."""
        with self._database.read() as database:
            wanted = f"WHERE {condition} AND s.state = {State.THERE:d} ORDER BY s.number"
            return [self._snapshot(row) for row in rows(database, f"{_COLUMNS} {wanted}")]

    def _walk(self, chosen: filters.Filter) -> Generator[Info, None, None]:
        with self._database.read() as database:
            statement = f"{_COLUMNS} WHERE {_SHOWN} ORDER BY s.number"
            with contextlib.closing(database.execute(statement)) as found:
                for row in found:
                    info = self._snapshot(row).info
                    if chosen(info):
                        yield info

    def _shown(self, database: sqlite3.Connection, key: str) -> Snapshot:
        found = rows(database, f"{_COLUMNS} WHERE s.key = ? AND {_SHOWN}", key)
        if not found:
            raise _not_found(key)
        return self._snapshot(found[0])

    def _settled(self, database: sqlite3.Connection, key: str, verb: str) -> Snapshot:
        """Return a snapshot that nobody prepares or commits. Another caller's work must end first."""
        found = rows(database, f"{_COLUMNS} WHERE s.key = ?", key)
        if not found:
            raise _not_found(key)
        snapshot = self._snapshot(found[0])
        if snapshot.state != State.THERE:
            raise FailedPrecondition(f"cannot {verb} snapshot {key!r}: it is {snapshot.state.name.lower()}")
        return snapshot

    def _of_layer(self, database: sqlite3.Connection, layer: str) -> Snapshot:
        return self._snapshot(rows(database, f"{_COLUMNS} WHERE s.layer = ?", layer)[0])

    def _snapshot(self, row: Any) -> Snapshot:
        return _snapshot(row, self._database.path)


def beside(root: str) -> list[Snapshot]:
    """Return all snapshots of a root, in whatever state, oldest first, for who is not the process that uses its store.

    That process may be at work, or have ended in any way; the directory is left as it is. Raises FileNotFoundError if
    there is no store, StoreNotWhole, StoreFailed.
    """
    path = os.path.join(root, FILE)
    with files.beside(path) as connection:
        if not rows(connection, "SELECT 1 FROM whole"):
            raise StoreNotWhole(f"{path} is yet to be made anew from the pool: wait until the snapshotter is ready")
        return [_snapshot(row, path) for row in rows(connection, f"{_COLUMNS} ORDER BY s.number")]


def _snapshot(row: Any, path: str) -> Snapshot:
    key, parent, kind, created, updated, labels, layer, state, size, inodes, target, image, chain = row[:13]
    shared, empty_size, empty_inodes = row[13:]
    try:
        info = Info(key or "", parent or "", Kind(kind), created, updated, json.loads(labels))
        own = layer, State(state), Usage(size, inodes), target or ""
        return Snapshot(info, *own, image, chain, bool(shared), Usage(empty_size, empty_inodes))
    except ValueError as error:
        raise StoreUnusable(f"{path} is damaged at the layer {layer}: {error}") from error


def _new_layer() -> str:
    return "".join(secrets.choice(_LAYER_CHARACTERS) for _ in range(LAYER_LENGTH))


def _dumped(labels: Mapping[str, str]) -> str:
    return json.dumps(stored_labels(labels))


def _not_found(key: str) -> NotFound:
    return NotFound(f"snapshot {key!r} does not exist")


def _committed(database: sqlite3.Connection, parent: str) -> int:
    """Return the number of a parent."""
    found = rows(database, "SELECT number, kind FROM snapshot WHERE key = ?", parent)
    if not found:
        raise NotFound(f"the parent {parent!r} does not exist")
    number, kind = found[0]
    if kind != Kind.COMMITTED:
        raise InvalidArgument(f"the parent {parent!r} is not committed")
    return int(number)


def _check_free(database: sqlite3.Connection, key: str) -> None:
    if rows(database, "SELECT 1 FROM snapshot WHERE key = ? OR target = ?", key, key):
        raise AlreadyExists(f"snapshot {key!r} exists already")


def _children(database: sqlite3.Connection, key: str) -> list[str]:
    statement = """SELECT c.key FROM snapshot c JOIN snapshot s ON s.number = c.parent
        WHERE s.key = ? ORDER BY c.number"""
    return [child for (child,) in rows(database, statement, key)]
