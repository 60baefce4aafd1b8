"""Keeps the pool's notes of this host's snapshots as they are (snapshots/note.py), in the background.

Prepare writes the first note of its layer itself, with the record that it writes anyway. What changes later is noted a
moment after that: a commit, other labels, and a snapshot that this host was told of. If the host dies before, and its
disk with it, the note is an old one; rebuilding.py goes by what stands on the layer then.
"""

from __future__ import annotations

import logging

import rbdcli
from cluster.told import Note, Told
from host import deadline
from host.background import Background, Group
from host.locks import Locks
from images.layers import LayerError, Layers
from snapshots import note
from snapshots.errors import NotFound
from snapshots.info import Snapshot, State
from snapshots.store import Store

log = logging.getLogger("notes")

# A note is written when nothing was made for so long, but NOTE_LATEST seconds after the change at the latest. That of a
# layer that is offered goes with the offer (sharing.py), which comes before.
NOTE_SECONDS, NOTE_LATEST = 2.0, 15.0


class Notes:
    """The notes of one root."""

    def __init__(self, store: Store, layers: Layers, told: Told, timeout: float) -> None:
        self._store, self._layers, self._told, self._timeout = store, layers, told, timeout
        # A note is written or forgotten.
        self._locks = Locks()
        self._noting = Background("noting snapshot", self._note)
        self.works = Group(self._noting)

    def later(self, layer: str) -> None:
        """Note a snapshot that has changed, in the background."""
        self._noting.later(layer, NOTE_SECONDS, NOTE_LATEST)

    def postpone(self) -> None:
        """Put off all notes a little: a client waits for something else."""
        self._noting.postpone(NOTE_SECONDS)

    def forget(self, layer: str) -> None:
        """Forget a removed snapshot that this host was told of. Raises command.CommandError, deadline.Overdue."""
        with self._locks.hold(layer):
            self._told.forget(layer)

    def reconcile(self) -> None:
        """Have notes of what this host was told of, as the store has it, and of nothing else.

        After a takeover with its root, a host has none of them. Raises command.CommandError, StoreFailed.
        """
        noted, told = self._told.names(), {snapshot.layer: snapshot for snapshot in self._store.told()}
        for layer in noted - told.keys():
            self._told.forget(layer)
        for layer in told.keys() - noted:
            self._write(told[layer])

    def start(self) -> None:
        """Go on with what an earlier life of this process has left."""
        for snapshot in self._store.unnoted():
            self._noting.later(snapshot.layer, 0)

    def _note(self, layer: str) -> bool:
        with deadline.within(2 * self._timeout), self._locks.hold(layer):
            snapshot = next((each for each in self._store.unnoted() if each.layer == layer), None)
            try:
                if snapshot and snapshot.image != layer:
                    self._write(snapshot)
                elif snapshot:
                    self._layers.note(layer, lambda: note.written(self._current(layer)))
                    self._store.noted(snapshot)
            except NotFound:
                log.debug("snapshot %s is removed: it needs no note", layer)
            except (LayerError, rbdcli.ImageMissing) as error:
                log.warning("snapshot %s is not noted: %s", layer, error)
        return True

    def _current(self, layer: str) -> Snapshot:
        """Return a snapshot as it is. Raises NotFound if it is removed."""
        snapshot = self._store.of_layer(layer)
        if snapshot.state is State.REMOVING:
            raise NotFound(f"the snapshot {layer} is removed")
        return snapshot

    def _write(self, snapshot: Snapshot) -> None:
        self._told.write(snapshot.layer, Note(snapshot.image, snapshot.chain, note.written(snapshot)))
        self._store.noted(snapshot)
