"""The snapshotter: what containerd asks of a snapshot, from Prepare to Remove, one method per call.

The contract of each method is in containerd's `snapshots/snapshotter.go`. The store (snapshots/store.py) decides which
snapshots there are; here each step of the store is done to the layers. A snapshot that is active or committed is one
layer; a view has none of its own.

A method that fails leaves what was before. If the process is killed within, `recover` does that at the next start.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from graph.reaper import Reaper
from host import command, deadline
from host.failure import EXPECTED, Failure
from images import layer_state
from images.options import parse_layer_size
from mapped.handed_out import Stack, Told
from mapped.host_layers import HostLayers
from mapped.idmapped import CannotMapIds
from mapped.states import FLUSHES, State
from snapshots import info, note
from snapshots.errors import FailedPrecondition, NotFound
from snapshots.info import NOTHING, Info, Kind, Snapshot, Usage
from snapshots.store import Store
from snapshotter import chains, id_labels
from snapshotter.notes import Notes
from snapshotter.sharing import Sharing

log = logging.getLogger("snapshotter")

# The size of the file system of a snapshot, as `docker run --storage-opt size=` has it: 20G.
SIZE_LABEL = "containerd.io/snapshot/docker-graph-driver.size"


# So long a Prepare waits for the cluster after a start.
READY_SECONDS = 10.0


class NotReady(Failure):
    """Nothing can be made yet, or told: the cluster has not answered since the start. The text is one line: why."""


class Snapshotter:
    """The snapshots of one root. `store` answers what needs no layer: Stat, List; after `check_whole`."""

    def __init__(self, store: Store, here: HostLayers, reaper: Reaper, sharing: Sharing, notes: Notes) -> None:
        """`reaper` calls Store.removed with what has gone."""
        self.store = store
        self._here, self._home, self._handed = here, here.home, here.handed_out
        self._reaper, self._sharing, self._notes = reaper, sharing, notes
        # What an empty file system takes, by the size of its image.
        self._empty: dict[int, Usage] = {}
        self._ready = threading.Event()
        self._is_whole = store.is_whole()
        self.why_not_ready = "the cluster has not answered yet"

    # -- the calls ---------------------------------------------------------------------------

    def check_whole(self) -> None:
        """Raise NotReady as long as it is not known which snapshots there are: every call asks this first.

        A root without a database may be that of a new host, or of one that has lost it: only the cluster tells. Until
        then nobody may be told that there are none: containerd's collector would take its images for gone.
        """
        if not self._is_whole:
            raise NotReady(f"the database is new, and what was in it before is not known yet: {self.why_not_ready}")

    def prepare(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Told]:
        """Make a snapshot, and tell how it is mounted.

        Raises AlreadyExists also if the pool has what containerd is about to unpack; what Store.begin_prepare raises,
        OptionError for a bad size, InvalidArgument for bad ids, NotReady, and what HandedOut.give raises.
        """
        size = _size_of(labels)
        id_labels.ids_of(key, labels)
        if kind is Kind.ACTIVE:
            self._await_ready()
            self._sharing.tell(key, parent, labels)
        snapshot = self.store.begin_prepare(kind, key, parent, labels)
        try:
            empty = NOTHING
            if kind is Kind.ACTIVE:
                told = self._give(snapshot, lambda stack: self._make(stack, size, note.written(snapshot)))
                empty = self._empty_usage(snapshot.layer)
            else:
                told = self._give(snapshot)
            self.store.prepared(snapshot.layer, empty)
        except BaseException:
            self._abandon(snapshot.layer)
            raise
        return told

    def mounts(self, key: str) -> list[Told]:
        """Tell how a snapshot is mounted; map and mount its layers for that. Raises what `prepare` raises."""
        snapshot = self.store.find(key)
        if snapshot.info.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key!r} is committed: a view of it can be mounted")
        return self._give(snapshot)

    def _give(self, snapshot: Snapshot, make: Callable[[Stack], None] | None = None) -> list[Told]:
        stack = self._stack(snapshot)
        try:
            return self._handed.give(stack, functools.partial(make, stack) if make else None)
        except CannotMapIds as error:
            raise CannotMapIds(f"snapshot {snapshot.info.name!r}: {error}") from None

    def commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        """Make a committed snapshot of an active one. Its data is in the cluster then.

        Raises what Store.begin_commit and HandedOut.give raise.
        """
        snapshot = self.store.begin_commit(key, name, labels)
        layer = snapshot.layer
        try:
            chain = self._sharing.chain_to_offer(snapshot, labels)
            self._give(snapshot)
            with self._home.locks.hold(layer):
                # Before its state is written anew: what that replaces is freed some time later.
                used = self._measured(snapshot, flushed=True)
                self._flush(layer)
                self.store.committed(layer, used, chain)
                self._here.states.set(layer, State.FINISHED)
        except BaseException:
            self.store.keep_active(layer)
            raise
        self._release(layer, flush=False)
        if chain:
            self._sharing.offer(layer)
        self._notes.later(layer)

    def _flush(self, layer: str) -> None:
        """Write out a layer, and that it is finished. Should the store not take that, the store is right."""
        point = self._home.paths.point(layer)
        self._here.systems.make_writable(layer)
        state = self._here.views.prepared(layer)
        layer_state.finish(point, state, FLUSHES * self._home.timeout)

    def remove(self, key: str) -> None:
        """Remove a snapshot. Its layer goes in the background, once nobody has it mounted any more.

        Raises what Store.begin_remove raises, OSError.
        """
        self._discard(self.store.begin_remove(key))
        self._reaper.postpone()

    def update(self, key: str, labels: Mapping[str, str], mask: Sequence[str]) -> Info:
        """Change the labels of a snapshot. Raises what Store.update raises."""
        layer = self.store.find(key).layer
        changed = self.store.update(key, labels, mask)
        self._notes.later(layer)
        return changed

    def usage(self, key: str) -> Usage:
        """Return what a snapshot takes without its parents. If it is not mounted, that is what it took when it was."""
        snapshot = self.store.find(key)
        if snapshot.info.kind is not Kind.ACTIVE:
            return snapshot.usage
        return self._measured(snapshot) if self._here.systems.is_mounted(snapshot.layer) else snapshot.usage

    def clean_up(self) -> None:
        """Try at once what could not be removed before."""
        self._reaper.works.wake()

    # -- the life of the process -------------------------------------------------------------

    def set_ready(self) -> None:
        """From now on layers can be made: the pool has a base image, and this host its name in it."""
        self._ready.set()

    def set_whole(self) -> None:
        """From now on calls are answered: the store has all that there is, and `recover` was called for it."""
        self._is_whole = True

    def recover(self) -> None:
        """End what an earlier life of this process has begun, and take over what it has handed out.

        Raises StoreFailed, OSError.
        """
        for snapshot in self.store.leftovers():
            log.warning("snapshot %s: a crash left it %s", snapshot.layer, snapshot.state.name.lower())
            if snapshot.state is info.State.COMMITTING:
                self.store.keep_active(snapshot.layer)
            elif snapshot.state is info.State.PREPARING:
                self._abandon(snapshot.layer)
            else:
                self._discard(snapshot)
        for found in self.store.walk("kind==active", "kind==view"):
            try:
                with deadline.within(self._home.timeout):
                    self._handed.adopt(self._stack(self.store.find(found.name)))
            except EXPECTED as error:
                log.error("snapshot %r from before: %s", found.name, error)
        self._handed.unmount_left()

    def take_back_unused(self) -> None:
        """Release the layers of the snapshots that nobody has mounted any more."""
        for layer in self._handed.take_back_unused(self._note_usage):
            log.debug("snapshot %s is not mounted any more", layer)
        self._handed.unmount_left()

    # ----------------------------------------------------------------------------------------

    def _await_ready(self) -> None:
        # containerd asks once, and does not wait by itself.
        if not self._ready.wait(deadline.left(READY_SECONDS)):
            raise NotReady(self.why_not_ready)

    def _stack(self, snapshot: Snapshot) -> Stack:
        image, *parents = self.store.images(snapshot.layer)
        kept = snapshot.info.kind is Kind.ACTIVE and chains.is_unpacked(snapshot.info.name)
        ids = id_labels.ids_of(snapshot.info.name, snapshot.info.labels)
        return Stack(snapshot.layer, image, tuple(parents), kept, ids)

    def _make(self, stack: Stack, size: int | None, noted: Mapping[str, object]) -> None:
        """Make the image of a new snapshot's layer. The caller holds its lock."""
        self._reaper.postpone()
        self._sharing.postpone()
        self._notes.postpone()
        if self._home.layers.create(stack.layer, next(iter(stack.parents), None), size, noted):
            self._here.systems.grow(stack.layer)
        self._here.states.set(stack.layer, State.OPEN)

    def _note_usage(self, layer: str) -> None:
        """Remember what an active snapshot takes now: once it is unmapped, nobody can measure it."""
        with contextlib.suppress(NotFound):
            snapshot = self.store.of_layer(layer)
            if snapshot.info.kind is Kind.ACTIVE:
                self.store.store_usage(layer, self._measured(snapshot))

    def _empty_usage(self, layer: str) -> Usage:
        """Return what the file system of a new layer takes by itself. It is the same for all of one size."""
        size = self._home.layers.describe(layer).size
        if size not in self._empty:
            self._empty[size] = Usage(*self._here.systems.usage(layer, flushed=True))
        return self._empty[size]

    def _measured(self, snapshot: Snapshot, *, flushed: bool = False) -> Usage:
        """Return what a mounted layer takes, without what its file system took when it was new."""
        size, inodes = self._here.systems.usage(snapshot.layer, flushed=flushed)
        return Usage(max(0, size - snapshot.empty.size), max(0, inodes - snapshot.empty.inodes))

    def _abandon(self, layer: str) -> None:
        self._discard(self.store.abandon(layer))

    def _discard(self, snapshot: Snapshot) -> None:
        """Let the layer of a removed snapshot go: at once from this host's memory, and in the background from all."""
        self._release(snapshot.layer, flush=False)
        if not snapshot.image:
            self.store.removed(snapshot.layer)
            return
        if snapshot.chain:
            self._sharing.leave(snapshot)
            return
        self._here.removals.note(snapshot.layer)
        self._here.states.forget(snapshot.layer)
        self._reaper.begin(snapshot.layer)

    def _release(self, layer: str, *, flush: bool) -> None:
        try:
            self._handed.take_back(layer, flush=flush)
        except (command.CommandError, deadline.Overdue, OSError, Failure) as error:
            # It is released all the same, and unmapped in the background.
            log.warning("snapshot %s: %s", layer, error)


def _size_of(labels: Mapping[str, str]) -> int | None:
    """Return the size that a label asks for, in bytes. Raises OptionError."""
    size = labels.get(SIZE_LABEL)
    return parse_layer_size({"size": size}) if size else None
