"""What a snapshotter knows of its layers, read from the snapshots.db in its root, while it runs or after its end.

Each layer has a row before its image is made, and until its image has gone (snapshots/store.py): so an image of this
home without a row belongs to nobody. What containerd itself knows adds nothing: it finds a layer only by its snapshot.

A layer that was taken over from another host is named if that host's root is here, under the same path. Without it
nobody can use the layer, so it is not kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from host import logs
from maintenance.knowledge import Database, DatabaseMissing, Known, Words
from overview.contents import Container, Names
from snapshots import store
from snapshots.errors import StoreFailed
from snapshots.info import IMAGE_LABEL, Kind, Snapshot, State

LAYER_ID = re.compile(rf"[a-z0-9]{{{store.LAYER_LENGTH}}}")
# How containerd calls the snapshot in which it unpacks a layer (core/unpack).
_UNPACKING = "extract-"
# Rows in this state count less than others that stand for the same layer.
_WORDS = {
    State.REMOVING: "being removed",
    State.PREPARING: "being prepared, as snapshot {!r}",
    State.COMMITTING: "snapshot {!r}, being committed",
    State.THERE: "snapshot {!r}",
}
_STEPS = {
    State.PREPARING: "being prepared",
    State.COMMITTING: "being committed",
    State.REMOVING: "being removed",
}


class SnapshotsDatabase(Database):
    """The database of one snapshotter; each method reads it anew, and writes nothing."""

    words = Words("the snapshotter", "containerd", "the snapshotter", "the snapshotter")
    ids = LAYER_ID
    keeps_taken = False

    def __init__(self, root: str) -> None:
        self._root = root

    def known(self) -> Known:
        """Return the layers of all snapshots, whatever their state. Raises DatabaseMissing."""
        snapshots = self._snapshots()
        known = Known()
        # A view has no layer of its own.
        with_layer = [snapshot for snapshot in snapshots if snapshot.image]
        for snapshot in sorted(with_layer, key=lambda snapshot: list(_WORDS).index(snapshot.state)):
            known.named[snapshot.image] = _WORDS[snapshot.state].format(snapshot.info.name)
        known.shared = {snapshot.image for snapshot in with_layer if snapshot.chain}
        made = {snapshot.image for snapshot in with_layer if snapshot.state in (State.THERE, State.COMMITTING)}
        known.unmade = known.named.keys() - made
        return known

    def names(self) -> Names:
        """Return what the snapshots of containers and of images are called, as far as their keys and labels tell."""
        try:
            snapshots = [snapshot for snapshot in self._snapshots() if snapshot.image]
        except DatabaseMissing as error:
            return Names(missing=str(error))
        containers = {item.image: _container(item) for item in snapshots if item.info.kind is Kind.ACTIVE}
        committed = frozenset(item.image for item in snapshots if item.info.kind is Kind.COMMITTED)
        return Names(_images(snapshots), containers, committed)

    def _snapshots(self) -> list[Snapshot]:
        try:
            return store.beside(self._root)
        except FileNotFoundError:
            path = os.path.join(self._root, store.FILE)
            text = f"{path} does not exist: mount or restore the snapshotter's root, or start the snapshotter there"
            raise DatabaseMissing(text) from None
        except StoreFailed as error:
            raise DatabaseMissing(f"{error}; nothing is known without it, so nothing is removed") from None


def _images(snapshots: Sequence[Snapshot]) -> dict[str, tuple[str, ...]]:
    """Return the names of images by their top layers: all layers of an image have the label."""
    named = {item.info.name: item for item in snapshots if _image_of(item)}
    below = {item.info.parent for item in named.values() if _image_of(named.get(item.info.parent)) == _image_of(item)}
    return {item.image: (_image_of(item),) for key, item in named.items() if key not in below}


def _image_of(snapshot: Snapshot | None) -> str:
    if snapshot is None or snapshot.info.kind is not Kind.COMMITTED:
        return ""
    return logs.printable(snapshot.info.labels.get(IMAGE_LABEL, ""))


def _container(snapshot: Snapshot) -> Container:
    """Name a container by the key of its snapshot, NAMESPACE/NUMBER/NAME. Whether it runs, containerd alone knows."""
    name = logs.printable(snapshot.info.name.rpartition("/")[2]) or snapshot.layer
    state = "being unpacked" if name.startswith(_UNPACKING) else "active"
    return Container(name, _STEPS.get(snapshot.state, state))
