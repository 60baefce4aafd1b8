"""What this host shares with the others of its pool: it finds layers that they made, and offers its own.

A layer that stands for a chain id is offered in the background, once it is committed and all below it is shared. From
then on it belongs to the pool: it is deleted when no host has used it for a while (`keep` seconds), by any host.
cluster/shared_layers.py decides what is safe; here the store's snapshots are kept in step with it:

- A snapshot is told to containerd only after the pool knows that this host uses its layer.
- The pool is told that this host uses a layer no more only after it is unmapped here, and no snapshot stands for it. A
  read-only mapping would not keep another host from deleting the image.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Container, Mapping

import rbdcli
from cluster import diagnosis
from cluster.chain_entry import Entry
from cluster.shared_layers import SharedLayers
from graph.reaper import Reaper
from host import command, deadline
from host.background import Background, Group
from host.locks import Locks
from images.layers import LayerError
from mapped.host_layers import HostLayers
from snapshots import note
from snapshots.errors import AlreadyExists, NotFound
from snapshots.info import Snapshot, State, Usage
from snapshots.store import Store
from snapshotter import chains
from snapshotter.notes import Notes

log = logging.getLogger("sharing")

# How often it is looked for layers that no host uses any more; how soon after a use has ended here; and after another
# host was in the way.
SWEEP_SECONDS, SWEEP_SOON_SECONDS, SWEEP_AGAIN_SECONDS = 600.0, 2.0, 20.0
# An offer begins when nothing was made for so long, but OFFER_LATEST seconds after the commit at the latest: it takes
# ten commands, which compete with those of the next layers.
OFFER_SECONDS, OFFER_LATEST = 1.0, 10.0
# Names of the same work: to ask for the one does not put off the others.
_ALL, _AGAIN, _REGULARLY = "what is unused", "what is unused still", "what is unused, from time to time"


class Sharing:
    """The shared snapshots of one root. It decides which layers are offered, told and given back.

    `enabled`: layers are found and offered. What is shared already is looked after in any case.
    """

    def __init__(
        self,
        store: Store,
        here: HostLayers,
        reaper: Reaper,
        shared: SharedLayers,
        notes: Notes,
        *,
        enabled: bool,
        keep: float,
    ) -> None:
        self._store, self._here, self._reaper, self._shared, self._notes = store, here, reaper, shared, notes
        self._layers, self._locks, self._timeout = here.home.layers, here.home.locks, here.home.timeout
        self._enabled, self._keep = enabled, keep
        # While a layer is told or given back: what the pool is told and what the store says must be the same.
        self._turn = threading.Lock()
        # A layer is offered or given back.
        self._offers = Locks()
        self._deleting: dict[str, Entry] = {}
        self._offering = Background("offering snapshot", self._offer)
        self._leaving = Background("giving back snapshot", self._leave)
        self._sweeping = Background("deleting layers", self._sweep)
        self.works = Group(self._offering, self._leaving, self._sweeping)

    # -- the calls ---------------------------------------------------------------------------

    def tell(self, key: str, parent: str, labels: Mapping[str, str]) -> None:
        """Raise AlreadyExists if the pool has the layer that a Prepare asks for: the store has a snapshot of it then.

        containerd looks for that snapshot by its label and its parent (pkg/unpack/unpacker.go). Raises what Store.tell
        and SharedLayers.find raise.
        """
        chain = chains.chain_wanted(key, labels)
        if not chain or not self._enabled:
            return
        with self._turn:
            entry = self._shared.find(chain)
            if entry is None:
                return
            told = self._store.tell(chain, parent, labels, entry.layer, Usage(entry.size, entry.inodes))
        self._notes.later(told.layer)
        # Its container will need it in a moment.
        self._here.mapping.later(entry.layer, 0)
        raise AlreadyExists(f"snapshot {told.info.name!r} is {chain}: another snapshot of this pool is the same")

    def chain_to_offer(self, snapshot: Snapshot, labels: Mapping[str, str]) -> str:
        """Return the chain id under which a snapshot that is being committed is to be offered, "" for none."""
        info = snapshot.info
        chain = chains.chain_made(info.name, snapshot.target, info.labels, labels) if self._enabled else ""
        if chain and info.parent and not self._store.find(info.parent).chain:
            return ""
        return chain

    def offer(self, layer: str) -> None:
        """Offer a committed snapshot in the background."""
        self._offering.later(layer, OFFER_SECONDS, OFFER_LATEST)

    def postpone(self) -> None:
        """Put off all offers a little: an image is being unpacked, and its client waits."""
        self._offering.postpone(OFFER_SECONDS)

    def leave(self, snapshot: Snapshot) -> None:
        """Give a removed snapshot back in the background."""
        self._leaving.later(snapshot.layer, 0)

    # -- the life of the process -------------------------------------------------------------

    def start(self) -> None:
        """Go on with what an earlier life of this process has left. The name of this host is claimed."""
        for snapshot in self._store.unoffered():
            self._offering.later(snapshot.layer, 0)
        self._sweeping.later(_REGULARLY, 0)

    def reconcile(self) -> None:
        """Use in the pool what the store has, and nothing else. A layer that has gone is logged.

        Raises command.CommandError, deadline.Overdue, StoreFailed.
        """
        with self._turn:
            ours = self._store.shared_images()
            unoffered = {snapshot.image for snapshot in self._store.unoffered()}
            noted = self._shared.own()
            stray = noted - ours - unoffered
            if stray:
                self._shared.release(stray)
            listed = {entry.layer: entry.chain for entry in self._shared.all() if not entry.deleting}
            for layer, chain in listed.items():
                if layer in ours - noted:
                    self._shared.find(chain)
            self._remember(listed)
            for layer in sorted(ours - self._shared.own()):
                log.error("the shared layer %s has gone from the pool: images that need it must be removed", layer)

    def _remember(self, listed: Container[str]) -> None:
        """Let what the store has be listed again, if the list has lost it: SharedLayers.make_room, before our start."""
        for snapshot in self._store.shared():
            entry = None if snapshot.image in listed else self._entry(snapshot)
            if entry:
                log.warning("the shared layer %s was listed no more, and is again", entry.layer)
                self._shared.remember(entry)

    def _entry(self, snapshot: Snapshot) -> Entry | None:
        """Return what the list is to say of a shared layer. None: its image has gone, or it stands on another layer."""
        try:
            record = self._layers.record(snapshot.image)
        except (LayerError, rbdcli.ImageMissing) as error:
            log.error("the shared layer %s: %s", snapshot.image, error)
            return None
        parent = self._store.find(snapshot.info.parent) if snapshot.info.parent else None
        below, above = (parent.image, parent.chain) if parent and parent.shared else ("", "")
        if record is None or not record.shared or record.parents[:1] != ((below,) if below else ()):
            return None
        size, inodes = snapshot.usage
        return Entry(snapshot.chain, snapshot.image, above, below, record.owner, int(time.time()), size, inodes)

    def gone(self, layer: str) -> None:
        """Learn that the image of a layer has gone. Raises command.CommandError, deadline.Overdue."""
        entry = self._deleting.get(layer)
        if entry:
            self._shared.end_delete(entry)
            del self._deleting[layer]
            # What it stood on was needed until now.
            self._sweeping.later(_ALL, SWEEP_SOON_SECONDS)

    # -- in the background -------------------------------------------------------------------

    def _offer(self, layer: str) -> bool:
        """Offer a snapshot. Tell whether that is done: its parent may not be shared yet."""
        with deadline.within(2 * self._timeout), self._offers.hold(layer):
            try:
                snapshot = self._store.of_layer(layer)
            except NotFound:
                return True
            if snapshot.state is not State.THERE or snapshot.shared or not snapshot.chain:
                return True
            if not snapshot.info.parent:
                return self._offer_on(snapshot, None)
            below = self._store.find(snapshot.info.parent)
            if below.chain and not below.shared:
                return False
            parent = self._shared.find(below.chain) if below.chain else None
            if parent is None or parent.layer != below.image:
                # What is below is this host's own, so this is, too.
                self._store.offered(layer, shared=False)
                return True
            return self._offer_on(snapshot, parent)

    def _offer_on(self, snapshot: Snapshot, parent: Entry | None) -> bool:
        layer, (size, inodes) = snapshot.layer, snapshot.usage
        with self._locks.hold(layer):
            self._here.systems.settle(layer)
        self._shared.use([layer])
        self._layers.share(layer, note.written(snapshot))
        self._store.noted(snapshot)
        stands = self._shared.offer(snapshot.chain, layer, parent, size=size, inodes=inodes)
        if stands is None:
            return False
        is_ours = stands.layer == layer
        if not is_ours:
            # Another host was first. Ours stays for this host alone.
            self._layers.own(layer)
        self._store.offered(layer, shared=is_ours)
        log.info("snapshot %s is %s", layer, "shared" if is_ours else f"as {stands.layer}, which is shared")
        return True

    def _leave(self, layer: str) -> bool:
        """Give a removed snapshot back. Tell whether that is done: its layer may be in use still."""
        try:
            image = self._store.of_layer(layer).image
        except NotFound:
            return True
        with deadline.within(2 * self._timeout), self._offers.hold(image):
            with self._turn:
                if self._store.stands(image):
                    return self._left(layer, image)
            with self._locks.hold(image):
                self._here.views.unmap_unused(image)
                if self._here.devices.device(image) is not None:
                    return False
            with self._turn:
                # It may have been told again meanwhile.
                if not self._store.stands(image):
                    self._give_back(image)
                    if image == layer and self._is_only_ours(image):
                        self._take_home(image)
                        return True
                self._left(layer, image)
        self._sweeping.later(_ALL, SWEEP_SOON_SECONDS)
        return True

    def _left(self, layer: str, image: str) -> bool:
        if image != layer:
            self._notes.forget(layer)
        self._store.removed(layer)
        return True

    def _give_back(self, image: str) -> None:
        try:
            self._shared.release([image])
        except command.CommandError:
            # This process knows it, and so can make room in a pool that is too full to be told.
            self._sweeping.later(_ALL, 0)
            raise

    def _is_only_ours(self, image: str) -> bool:
        """Tell whether no other host knows a layer. In a full pool, the list may be away for a while (make_room)."""
        # Who is told of a layer uses it, and then looks whether it is listed. So the list comes first here.
        is_listed = any(entry.layer == image for entry in self._shared.all())
        seen = self._shared.uses()
        return not is_listed and not seen.users.get(image) and not seen.unreadable

    def _take_home(self, image: str) -> None:
        """Remove a layer of ours that was to be offered and is not: it goes as others do that nobody shares."""
        self._layers.own(image)
        self._here.removals.note(image)
        self._here.states.forget(image)
        self._reaper.begin(image)

    def _delete(self, entry: Entry) -> None:
        """Delete a layer that no host uses any more. It may be removed by this host."""
        log.info("shared layer %s goes: no host uses it any more", entry.layer)
        self._deleting[entry.layer] = entry
        self._here.removals.note(entry.layer)
        self._reaper.begin(entry.layer)

    def _sweep(self, when: str) -> bool:
        """Delete what no host uses any more."""
        try:
            with deadline.within(2 * self._timeout):
                self._shared.tidy()
                self._delete_unused()
        except command.CommandError:
            if not diagnosis.is_full(self._here.home.pool):
                raise
            self._make_room()
            # What could not be written is to be written once there is room.
            return False
        if when == _REGULARLY:
            self._sweeping.later(_REGULARLY, SWEEP_SECONDS)
        return True

    def _delete_unused(self) -> None:
        for entry in self._shared.unused(self._keep):
            if entry.layer in self._deleting:
                continue
            if self._shared.begin_delete(entry):
                with contextlib.suppress(rbdcli.ImageMissing):
                    self._layers.own(entry.layer)
                self._delete(entry)
            else:
                # What stands on it goes first; or another host looked at the same moment, and neither deleted it.
                self._sweeping.later(_AGAIN, SWEEP_AGAIN_SECONDS)

    def _make_room(self) -> None:
        """Delete what no host uses any more from a full pool, which takes no note of that."""
        with deadline.within(2 * self._timeout):
            for entry in self._shared.make_room():
                if entry.layer not in self._deleting:
                    self._layers.let_go(entry.layer)
                    self._delete(entry)
