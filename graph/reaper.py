"""What was removed goes from this host and from the pool in the background, until it is done.

A removed layer is noted on this host (`removals.py`), so whatever is in the way, and whenever this process ends, it
goes on. A deletion takes as long as it gets on, others go on beside it, and the layer's lock is held only for what is
short.

A deletion that did not come to its end leaves an image in the trash, and so does one of which somebody has made a clone
(rbdcli.py). Every driver of the prefix deletes these, for all.

A full pool (its quota, or the cluster's full ratio) lets nothing become more, and drops what does not say that it knows
(Ceph, osd/PrimaryLogPG.cc, prepare_transaction: FULL_TRY). `rbd info`, `ls`, `diff`, `snap ls`, `snap rm` and `rm`
work; `rm` only if the pool has the object `rbd_trash` already, which Init makes. `rbd clone`, `snap create`,
`image-meta`, `trash mv`, the kernel's writes, and the end of a mapping, which gives the lock back, hang. So a removal
reads the owner by `rados`, and deletes in place; an image with clones goes to the trash by `rbd rm` itself. Of a layer
that cannot be unmapped the objects are deleted first (`rados --force-full rm`), but not if it has snapshots.
"""

from __future__ import annotations

import contextlib
import logging

import rbdcli
from host import command, deadline
from host.background import Background, Group
from images.layers import LayerError
from mapped.host_layers import HostLayers
from mapped.unmounting import LayerBusy

log = logging.getLogger("reaper")

# Removing and deleting compete with what Docker waits for: they begin when nothing was made or removed for so long, but
# not later than that.
REMOVE_SECONDS, TRASH_SECONDS, BEHIND_LATEST = 0.5, 1.0, 10.0
# One that takes long, or waits for somebody, does not keep the others.
DELETIONS_AT_ONCE = 4
_TRASH = "trash"
MOST_NAMED = 3


class Reaper:
    """What is noted as removed, and what lies in the trash."""

    def __init__(self, here: HostLayers) -> None:
        self._layers, self._locks, self._timeout = here.home.layers, here.home.locks, here.home.timeout
        self._devices, self._views, self._removals = here.devices, here.views, here.removals
        # Of which it was said that others stand on them.
        self._waiting: set[str] = set()
        self._removing = Background("removing layer", self._remove, DELETIONS_AT_ONCE)
        self._trash = Background("deleting from the trash", self._delete_trashed, DELETIONS_AT_ONCE)
        self.works = Group(self._removing, self._trash)

    # -- what is asked for -------------------------------------------------------------------

    def start(self) -> None:
        """Begin with what was left from before."""
        for layer in self._removals:
            self._removing.later(layer, 0, 0)
        self._trash.later(_TRASH, 0, 0)

    def begin(self, layer: str) -> None:
        """Let a layer go that was noted as removed."""
        self._removing.later(layer, REMOVE_SECONDS, BEHIND_LATEST)

    def wait_for(self, layer: str, timeout: float) -> bool:
        """Tell whether a layer that was noted as removed is gone, after `timeout` seconds at the most."""
        return self._removing.wait_for(layer, timeout)

    def postpone(self) -> None:
        """Docker is at work: what nobody waits for can wait."""
        self._removing.postpone(REMOVE_SECONDS)
        self._trash.postpone(TRASH_SECONDS)

    # -- within ------------------------------------------------------------------------------

    def _remove(self, layer: str) -> bool:
        """Let the image of a layer go; tell whether that is done, not while others stand on it. Raises LayerBusy."""
        if self._is_needed(layer):
            # Until those are gone it is nobody's here, unless they use it.
            with deadline.within(self._timeout), self._locks.hold(layer):
                self._views.unmap_unused(layer, tidy=False)
            return False
        if not self._unmap(layer):
            return False
        try:
            # A deletion that was cut off may leave a name without an image.
            with contextlib.suppress(rbdcli.ImageMissing):
                self._layers.check_owner_of_removed(layer)
            self._delete(layer)
        except rbdcli.ImageMissing:
            pass
        except command.CommandGivenUp:
            return False
        except LayerError as error:
            # It was taken over while this host was taken for dead.
            log.error("its image stays: %s", error)
        self._waiting.discard(layer)
        with self._locks.hold(layer):
            self._removals.forget(layer)
        # What is in the trash may have waited for this one.
        self._trash.later(_TRASH, TRASH_SECONDS, BEHIND_LATEST)
        return True

    def _is_needed(self, layer: str) -> bool:
        """Tell whether a layer stands on this one, whatever Docker knows of it, that is not itself removed."""
        needing = [child for child in self._layers.needing(layer) if child not in self._removals]
        if needing and layer not in self._waiting:
            log.info("layer %s stays until these are removed, too: %s", layer, ", ".join(needing[:MOST_NAMED]))
            self._waiting.add(layer)
        return bool(needing)

    def _unmap(self, layer: str) -> bool:
        """Unmap a layer; tell whether that is done. Raises LayerBusy."""
        with deadline.within(self._timeout), self._locks.hold(layer):
            try:
                self._views.unmap_unused(layer, tidy=False)
                return self._devices.device(layer) is None
            except LayerBusy:
                if not self._devices.is_written_back(layer):
                    raise
            except (command.CommandTimeout, deadline.Overdue) as error:
                log.warning("layer %s cannot be unmapped now, its content goes first: %s", layer, error)
        # A full pool takes neither what the kernel has to write, nor that it gives the image's lock back. So what
        # filled it makes room for that itself. Without the layer's lock: it asks the cluster more than once.
        with deadline.within(self._timeout):
            self._layers.check_owner_of_removed(layer)
        self._layers.empty(layer, self._removing.is_stopped)
        return False

    def _delete(self, layer: str) -> None:
        try:
            self._layers.remove(layer, self._removing.is_stopped)
        except rbdcli.ImageBusy:
            with deadline.within(self._timeout), self._locks.hold(layer):
                if not self._devices.reclaim(layer):
                    raise
            self._layers.remove(layer, self._removing.is_stopped)

    def _delete_trashed(self, item: str) -> bool:
        """Delete one image in the trash, or ask for that of all but those that are on their way there."""
        if item == _TRASH:
            for removed in self._layers.trash.removed():
                if self._layers.layer(removed.name) not in self._removals:
                    self._trash.later(removed.image_id, 0)
            return True
        try:
            if self._layers.trash.delete(item, self._trash.is_stopped):
                # A parent waits for its children.
                self._trash.later(_TRASH, 0)
        except command.CommandGivenUp:
            return False
        return True
