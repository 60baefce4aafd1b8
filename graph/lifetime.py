"""The start and the end of a driver: what it needs, what it takes over from before, and what it does in the background.

An Init makes a driver in this order: `claim`, `prepare`, `learn`, `settle`, `start`. A start without Init, of this
process alone, does `learn` and `start`.
"""

from __future__ import annotations

import logging
import time

from cluster import rados_objects
from cluster.claim import REBOOT_SECONDS
from cluster.liveness import Liveness
from graph import preconditions
from graph.bounds import Bounds
from graph.read_ahead import ReadAhead
from graph.reaper import Reaper
from host import command, deadline
from host.background import Group
from host.failure import Failure
from images.base_image import BaseImage
from mapped.host_layers import HostLayers

log = logging.getLogger("lifetime")

# dockerd ends by force 15 s after it was told to end (moby cmd/dockerd), and then leaves its data root mounted.
# What is still in the trash then is deleted in the background, or at the next start.
CLEANUP_SECONDS = 8.0


class StillAtWork(Failure):
    """What a former driver does in the background is not over: one line."""


class Lifetime:
    """The lifetime of one driver."""

    def __init__(self, here: HostLayers, liveness: Liveness, bounds: Bounds, reaper: Reaper, ahead: ReadAhead) -> None:
        self._here, self._home = here, here.home
        self._liveness, self._bounds, self._reaper = liveness, bounds, reaper
        self._ahead_of_need = Group(here.mapping, ahead.reading)
        self._owed = Group(here.unmapping, reaper.works)
        self._background = Group(self._owed, self._ahead_of_need)
        # What was found at the start and nobody needs.
        self._left_over: list[str] = []

    @property
    def timeout(self) -> float:
        """The seconds that one command may take."""
        return self._home.timeout

    # -- start -------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise preconditions.NotReady unless what the options name, and the programs for it, are there."""
        preconditions.check(self._home.pool, self._home.options)

    def claim(self) -> None:
        """Look whether all is there that is needed, and that no other machine lives under our name; claim it.

        May wait for that as long as the cluster takes what we were before a reboot for living. Undone by `end`. Raises
        preconditions.NotReady, claim.OwnerTaken, command.CommandError.
        """
        with self._bounds.explaining(), deadline.within(REBOOT_SECONDS + 2 * self.timeout):
            self.check()
            self._liveness.claim()

    def prepare(self) -> None:
        """Make the base image; needs the claim. It does not disturb a driver that runs.

        Raises LayerError, command.CommandError.
        """
        self._home.paths.make_home()
        BaseImage(self._home.layers, self._home.options, self._home.paths.home).ensure()
        try:
            rados_objects.prepare_trash(self._home.pool)
        except command.CommandError as error:
            log.warning("once the pool is full, nothing can be removed from it: %s", error)

    def learn(self) -> None:
        """Learn what an earlier life of this process, or another object, had mounted. Raises command.CommandError."""
        self._home.paths.make_home()
        self._here.removals.learn()
        self._left_over = self._here.from_before.learn(self._here.removals)

    def settle(self) -> None:
        """A daemon has just started: keep mounted what containers still use. Raises command.CommandError.

        Called also without an end of the daemon before it when it crashed or kept its containers (live-restore).
        """
        self._left_over = self._here.from_before.settle(self._here.removals)

    def start(self) -> None:
        """Begin what is done in the background: with what was left from before, and what was in the trash."""
        self._liveness.start()
        for layer in self._left_over:
            self._here.unmapping.later(layer, 0)
        self._reaper.start()

    # -- end ---------------------------------------------------------------------------------

    def pause(self, timeout: float) -> None:
        """Do nothing in the background until `resume` or `end`: another object is about to take over from the host.

        Raises StillAtWork if something that was begun is not over within `timeout` seconds; it goes on then.
        """
        if not self._background.pause(timeout):
            self.resume()
            raise StillAtWork(f"the former daemon's layers are still being unmapped after {timeout:g} s")

    def resume(self) -> None:
        """Go on after `pause`."""
        self._background.resume()

    def end(self) -> None:
        """Do nothing any more: another object has taken over, and could tell from the host what this one had mapped."""
        self._background.end()
        self._liveness.stop()

    def cleanup(self) -> None:
        """End as Docker ends: the trash is emptied as far as there is time. Containers' mounts stay."""
        self._home.daemon.end()
        # What is to be mapped ahead stays undone: dockerd is about to unmount its data root.
        self.drain(CLEANUP_SECONDS)
        # What it has asked for meanwhile (a build that goes on to the last) is its, too.
        self._home.daemon.end()

    def drain(self, timeout: float) -> bool:
        """Unmap what is mapped for nobody, remove what is removed, empty the trash, as far as `timeout` seconds allow.

        Tell whether all of it was tried.
        """
        # Each is asked, also when the one before took all the time: what it can do at once it does.
        until = time.monotonic() + timeout
        paused = self._ahead_of_need.pause(timeout)
        return self._owed.drain(max(0.0, until - time.monotonic())) and paused
