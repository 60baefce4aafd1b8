"""Removed layers go from this host and from the pool in the background, until it is done.

A removed layer is noted on this host (`removals.py`). So the removal goes on after any failure, and after an end of
this process. A deletion may take any time as long as it makes progress. Other deletions go on beside it. The layer's
lock is held for short steps only.

If a deletion is cut short, its image is left in the trash. So is an image of which somebody has made a clone
(rbdcli.py). Every driver of the prefix deletes these images, whoever removed them.

A full pool (by its quota, or by the cluster's full ratio) takes no new data. It takes a write that only frees space, if
the client marks it so (Ceph, osd/PrimaryLogPG.cc, prepare_transaction: FULL_TRY); all other writes hang. `rbd info`,
`ls`, `diff`, `snap ls`, `snap rm` and `rm` work; `rm` only if the pool has the object `rbd_trash`, which Init makes.
`rbd clone`, `snap create`, `image-meta`, `trash mv` and the kernel's writes hang. An unmap hangs too: it gives the lock
of the image back. So a removal reads the owner by `rados`, and deletes in place; `rbd rm` itself moves an image with
clones to the trash. If a layer cannot be unmapped, its objects are deleted first (`rados --force-full rm`), but not if
it has snapshots.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import rbdcli
from host import command, deadline
from host.background import Background, Group
from images.layers import LayerError
from mapped.host_layers import HostLayers
from mapped.unmounting import LayerBusy

log = logging.getLogger("reaper")

# Removing and deleting compete with what Docker waits for. So they begin when nothing was made or removed for so long
# (REMOVE_SECONDS, TRASH_SECONDS), but BEHIND_LATEST seconds after they were asked for at the latest.
REMOVE_SECONDS, TRASH_SECONDS, BEHIND_LATEST = 0.5, 1.0, 10.0
# A deletion that takes long, or waits for somebody, does not keep the others waiting.
DELETIONS_AT_ONCE = 4
_TRASH = "trash"
MOST_NAMED = 3


class Reaper:
    """The layers that are noted as removed, and the images in the trash. It decides when each of them is deleted."""

    def __init__(self, here: HostLayers, gone: Callable[[str], None] = lambda _: None) -> None:
        """`gone` is called with a removed layer once it has gone, before its note goes."""
        self._layers, self._locks, self._timeout = here.home.layers, here.home.locks, here.home.timeout
        self._devices, self._views, self._removals = here.devices, here.views, here.removals
        self._gone = gone
        # The layers that others stand on, and for which this was logged.
        self._waiting: set[str] = set()
        self._removing = Background("removing layer", self._remove, DELETIONS_AT_ONCE)
        self._trash = Background("deleting from the trash", self._delete_trashed, DELETIONS_AT_ONCE)
        self.works = Group(self._removing, self._trash)

    # -- what is asked for -------------------------------------------------------------------

    def start(self) -> None:
        """Begin with the layers that were removed before this start, and with the trash."""
        for layer in self._removals:
            self._removing.later(layer, 0, 0)
        self._trash.later(_TRASH, 0, 0)

    def begin(self, layer: str) -> None:
        """Delete a layer in the background. It must be noted as removed."""
        self._removing.later(layer, REMOVE_SECONDS, BEHIND_LATEST)

    def wait_for(self, layer: str, timeout: float) -> bool:
        """Try at once to delete a removed layer. Tell whether it is gone, after `timeout` seconds at the most."""
        return self._removing.wait_for(layer, timeout)

    def postpone(self) -> None:
        """Put off all removals and deletions a little: Docker is at work, and nobody waits for them."""
        self._removing.postpone(REMOVE_SECONDS)
        self._trash.postpone(TRASH_SECONDS)

    # -- within ------------------------------------------------------------------------------

    def _remove(self, layer: str) -> bool:
        """Delete the image of a layer. Tell whether that is done; it is not while other layers stand on this one.

        Raises LayerBusy, command.CommandError, deadline.Overdue, OSError: then it is tried again.
        """
        if self._is_needed(layer):
            # Meanwhile it need not be mapped on this host, unless these layers use it.
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
            # Another host has taken the layer over: it took this host for dead.
            log.error("its image stays: %s", error)
        self._waiting.discard(layer)
        with self._locks.hold(layer):
            self._gone(layer)
            self._removals.forget(layer)
        # An image in the trash may have waited for this one to go.
        self._trash.later(_TRASH, TRASH_SECONDS, BEHIND_LATEST)
        return True

    def _is_needed(self, layer: str) -> bool:
        """Tell whether any layer stands on this one that is not removed itself, whether Docker knows it or not."""
        needing = [child for child in self._layers.needing(layer) if child not in self._removals]
        if needing and layer not in self._waiting:
            log.info("layer %s stays until these are removed, too: %s", layer, ", ".join(needing[:MOST_NAMED]))
            self._waiting.add(layer)
        return bool(needing)

    def _unmap(self, layer: str) -> bool:
        """Unmap a layer. Tell whether that is done; if a full pool is in the way, delete the layer's content first.

        Raises LayerBusy, LayerError if another host owns the layer, command.CommandError.
        """
        with deadline.within(self._timeout), self._locks.hold(layer):
            try:
                self._views.unmap_unused(layer, tidy=False)
                return self._devices.device(layer) is None
            except LayerBusy:
                if not self._devices.is_written_back(layer):
                    raise
            except (command.CommandTimeout, deadline.Overdue) as error:
                log.warning("layer %s cannot be unmapped now, its content goes first: %s", layer, error)
        # A full pool takes neither what the kernel has to write, nor the return of the image's lock. So the content of
        # the layer itself makes room. The layer's lock is not held: this asks the cluster more than once.
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
        """Delete the image in the trash that has the id `item`. _TRASH: ask for that for each image in the trash.

        Images that are being deleted by `_remove` at this time are left out.
        """
        if item == _TRASH:
            for removed in self._layers.trash.removed():
                if self._layers.layer(removed.name) not in self._removals:
                    self._trash.later(removed.image_id, 0)
            return True
        try:
            if self._layers.trash.delete(item, self._trash.is_stopped):
                # A parent in the trash may have waited for this child.
                self._trash.later(_TRASH, 0)
        except command.CommandGivenUp:
            return False
        return True
