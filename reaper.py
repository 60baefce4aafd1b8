"""What was removed goes from this host and from the pool in the background, until it is done.

A removed layer is noted on this host (`mounted.py`), so whatever is in the way, and whenever this process ends, it goes
on. A deletion takes as long as it gets on, others go on beside it, and the layer's lock is held only for what is short.

Images with clones lie in the trash until the last of them has gone, which deletes them (rbdcli.py). What is found there
all the same, since a deletion did not come to its end, is deleted by every driver of the prefix, for all.
"""

from __future__ import annotations

import logging
import threading

import command
import deadline
import rbdcli
from behind import Behind, in_turn
from busy import LayerBusy
from layers import LayerError, Layers
from locks import Locks
from mounted import MountedLayers

log = logging.getLogger("reaper")

# Removing and deleting compete with what Docker waits for: they begin when nothing was made or removed for so long, but
# not later than that.
REMOVE_SECONDS, TRASH_SECONDS, BEHIND_LATEST = 0.5, 1.0, 10.0
# One that takes long, or waits for somebody, does not keep the others.
DELETIONS_AT_ONCE = 4
_TRASH = "trash"


class Reaper:
    """What is noted as removed, and what lies in the trash. `expected`: what a sick cluster may raise."""

    def __init__(
        self,
        layers: Layers,
        mounted: MountedLayers,
        locks: Locks,
        timeout: float,
        expected: tuple[type[Exception], ...],
    ) -> None:
        self._layers, self._mounted, self._locks, self._timeout = layers, mounted, locks, timeout
        self._removing = Behind("removing layer", self._remove, expected, DELETIONS_AT_ONCE)
        self._trash = Behind("deleting from the trash", self._delete_trashed, expected, DELETIONS_AT_ONCE)
        # Set: what may take hours shall end now.
        self._ending = threading.Event()

    # -- what is asked for -------------------------------------------------------------------

    def start(self) -> None:
        """Begin with what was left from before."""
        for layer in self._mounted.removed():
            self._removing.later(layer, 0, 0)
        self._trash.later(_TRASH, 0, 0)

    def begin(self, layer: str) -> None:
        """Let a layer go that was noted as removed."""
        self._removing.later(layer, REMOVE_SECONDS, BEHIND_LATEST)

    def finish(self, layer: str, timeout: float) -> bool:
        """Tell whether a layer that was noted as removed is gone, after `timeout` seconds at the most."""
        return self._removing.finish(layer, timeout)

    def postpone(self) -> None:
        """Docker is at work: what nobody waits for can wait."""
        self._removing.postpone(REMOVE_SECONDS)
        self._trash.postpone(TRASH_SECONDS)

    def wake(self) -> None:
        """Try at once what has failed before: what was in the way may be gone."""
        self._removing.wake()
        self._trash.wake()

    def drain(self, timeout: float) -> bool:
        """Try all of it now; tell whether all was tried within `timeout` seconds."""
        return all(in_turn(timeout, self._removing.drain, self._trash.drain))

    def pause(self, timeout: float) -> bool:
        """Begin nothing until `resume`; tell whether what is being done ended within `timeout` seconds."""
        self._ending.set()
        return all(in_turn(timeout, self._removing.pause, self._trash.pause))

    def resume(self) -> None:
        """Go on after `pause`."""
        self._ending.clear()
        self._removing.resume()
        self._trash.resume()

    def end(self) -> None:
        """Do nothing any more."""
        self._ending.set()
        self._removing.end()
        self._trash.end()

    # -- within ------------------------------------------------------------------------------

    def _remove(self, layer: str) -> bool:
        """Let the image of a layer go; tell whether that is done. Raises LayerBusy."""
        if not self._unmap(layer):
            return False
        try:
            self._layers.check_owner_of_removed(layer)
            self._delete(layer)
        except rbdcli.ImageMissing:
            pass
        except command.CommandGivenUp:
            return False
        except LayerError as error:
            # It was taken over while this host was taken for dead.
            log.error("its image stays: %s", error)
        with self._locks.hold(layer):
            self._mounted.forget(layer)
        # What is in the trash may have waited for this one.
        self._trash.later(_TRASH, TRASH_SECONDS, BEHIND_LATEST)
        return True

    def _unmap(self, layer: str) -> bool:
        """Unmap a layer; tell whether that is done. Raises LayerBusy."""
        with deadline.within(self._timeout), self._locks.hold(layer):
            try:
                self._mounted.let_go(layer)
                return True
            except LayerBusy:
                if not self._mounted.is_written_back(layer):
                    raise
            except (command.CommandTimeout, deadline.Overdue) as error:
                log.warning("layer %s cannot be unmapped now, its content goes first: %s", layer, error)
        # A full pool takes neither what the kernel has to write, nor that it gives the image's lock back. So what
        # filled it makes room for that itself. Without the layer's lock: it asks the cluster more than once.
        with deadline.within(self._timeout):
            self._layers.check_owner_of_removed(layer)
        self._layers.empty(layer, self._ending.is_set)
        return False

    def _delete(self, layer: str) -> None:
        try:
            self._layers.remove(layer, self._ending.is_set)
        except rbdcli.ImageBusy:
            with deadline.within(self._timeout), self._locks.hold(layer):
                if not self._mounted.reclaim(layer):
                    raise
            self._layers.remove(layer, self._ending.is_set)

    def _delete_trashed(self, item: str) -> bool:
        """Delete one image in the trash, or ask for that of all but those that are on their way there."""
        if item == _TRASH:
            for removed in self._layers.removed():
                if not self._mounted.is_removed(self._layers.layer(removed.name)):
                    self._trash.later(removed.image_id, 0)
            return True
        try:
            if self._layers.delete_trashed(item, self._ending.is_set):
                # A parent waits for its children.
                self._trash.later(_TRASH, 0)
        except command.CommandGivenUp:
            return False
        return True
