"""The start and the end of a driver: what it needs, what it takes over from before, and what it does in the background.

An Init starts a driver by `claim`, `prepare`, `learn`, `settle` and `start`, in this order. If only this process
restarts, there is no Init: then `learn` and `start` are enough.
"""

from __future__ import annotations

import logging

from cluster import rados_objects
from cluster.claim import REBOOT_SECONDS
from cluster.liveness import Liveness
from graph import preconditions
from graph.bounds import Bounds
from graph.reaper import Reaper
from host import command, deadline
from host.background import Background, Group, in_turn
from host.failure import Failure
from images.base_image import BaseImage
from mapped.host_layers import HostLayers

log = logging.getLogger("lifetime")

# dockerd ends by force 15 s after it was told to end (moby cmd/dockerd), and then leaves its data root mounted. So
# Cleanup must be shorter. Images that are still in the trash are deleted in the background, or at the next start.
CLEANUP_SECONDS = 8.0


class StillAtWork(Failure):
    """A former driver is still at work in the background. The text is one line."""


class Lifetime:
    """The lifetime of one driver. It decides what is done at the start and at the end, and in which order."""

    def __init__(
        self, here: HostLayers, liveness: Liveness, bounds: Bounds, reaper: Reaper, *ahead_of_need: Background
    ) -> None:
        """`ahead_of_need`: what else in the background nobody waits for."""
        self._here, self._home = here, here.home
        self._liveness, self._bounds, self._reaper = liveness, bounds, reaper
        self._ahead_of_need = Group(here.mapping, *ahead_of_need)
        self._owed = Group(here.unmapping, reaper.works)
        # Deletions may take long, and end when they are told to: they are told first.
        self._background = Group(reaper.works, self._ahead_of_need, here.unmapping)
        # The layers that were found at the start and that nobody needs.
        self._left_over: list[str] = []

    @property
    def timeout(self) -> float:
        """The seconds that one command may take."""
        return self._home.timeout

    # -- start -------------------------------------------------------------------------------

    def check(self) -> None:
        """Look whether what the options name is there, and the programs for it. Changes nothing.

        Raises preconditions.NotReady, command.CommandError.
        """
        preconditions.check(self._home.pool, self._home.options)

    def claim(self) -> None:
        """Do what `check` does; then claim our name, if no other machine lives under it. `end` undoes this.

        After a reboot the cluster takes this machine for living for a while: then this waits, for REBOOT_SECONDS at the
        most. Raises preconditions.NotReady, claim.OwnerTaken, command.CommandError, OSError.
        """
        with self._bounds.explaining(), deadline.within(REBOOT_SECONDS + 2 * self.timeout):
            self.check()
            self._liveness.claim()

    def prepare(self) -> None:
        """Make the home and the base image, unless they are there. The name must be claimed before.

        A driver that runs is not disturbed. Raises what BaseImage.ensure raises.
        """
        self._home.paths.make_home()
        BaseImage(self._home.layers, self._home.options, self._home.paths.home).ensure()
        try:
            rados_objects.prepare_trash(self._home.pool)
        except command.CommandError as error:
            log.warning("once the pool is full, nothing can be removed from it: %s", error)

    def learn(self) -> None:
        """Learn what an earlier life of this process, or another driver in this one, had mounted.

        Raises command.CommandError, OSError.
        """
        self._home.paths.make_home()
        self._here.removals.learn()
        self._left_over = self._here.from_before.learn(self._here.removals)

    def settle(self) -> None:
        """Keep mounted what containers still use, and unmount the rest: a daemon has just started.

        The former daemon need not have ended well: it may have crashed, or kept its containers (live-restore). A layer
        that cannot be unmounted is logged. Raises OSError.
        """
        self._left_over = self._here.from_before.settle(self._here.removals)

    def start(self) -> None:
        """Begin the work in the background, with what was left from before, and with the trash."""
        self._liveness.start()
        for layer in self._left_over:
            self._here.unmapping.later(layer, 0)
        self._reaper.start()

    # -- end ---------------------------------------------------------------------------------

    def pause(self, timeout: float) -> None:
        """Do nothing in the background until `resume` or `end`: another driver is about to take over.

        Raises StillAtWork if some work is not over within `timeout` seconds: then the work in the background goes on.
        """
        if not self._background.pause(timeout):
            self.resume()
            raise StillAtWork(f"the former daemon's layers are still being unmapped after {timeout:g} s")

    def resume(self) -> None:
        """Go on after `pause`."""
        self._background.resume()

    def end(self) -> None:
        """Do nothing any more. What this driver had mapped stays, and another driver can tell it from the host."""
        self._background.end()
        self._liveness.stop()

    def cleanup(self) -> None:
        """Empty the trash as far as there is time: Docker ends. The mounts of containers stay."""
        self._home.daemon.end()
        # Nothing is mapped ahead any more: dockerd is about to unmount its data root.
        self.drain(CLEANUP_SECONDS)
        # A build goes on until dockerd ends: what it has asked for meanwhile is for this daemon, too.
        self._home.daemon.end()

    def drain(self, timeout: float) -> bool:
        """Unmap unused layers, delete the images of removed layers, empty the trash, for `timeout` seconds at the most.

        Tell whether all of it was tried. Nothing is mapped ahead from now on.
        """
        # Even if the pause took all the time, `drain` is called: it does what it can do at once.
        return in_turn(timeout, [self._ahead_of_need.pause, self._owed.drain])
