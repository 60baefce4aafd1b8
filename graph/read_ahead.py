"""Reads from the cluster what Docker will read next, before Docker asks: of the layer that it got, and of the next one.

`docker save` and `docker push` get each finished layer of an image, and read what it brought. A save gets one layer
after the other, from the lowest up; a push several at once, from the highest down. So in a save the next layer, the
follower, is a child of the layer. It is known if the layer has one child, the layers of containers not counted. Only
the children that this process knows are looked at: to ask the cluster would take longer than reading ahead gains.

An error of reading ahead is only logged: if something is wrong, the next Get of the layer fails and tells.
"""

from __future__ import annotations

import logging
import os
import time

from graph import read_ahead_process
from host import command, deadline, environment
from host.background import Background
from host.failure import EXPECTED_OF_PROGRAMS
from images import layer_state
from images.layers import INIT_SUFFIX
from mapped.host_layers import HostLayers
from mapped.view import Place

log = logging.getLogger("read_ahead")

AT_ONCE = 4
# A follower is released after so many seconds, even if Docker still reads the layer. PAUSE is between two looks.
KEPT_SECONDS, PAUSE = 60.0, 0.1


class ReadAhead:
    """Decides which layers are read ahead, and until when a follower stays mounted for that.

    A follower is mounted like any other layer in use. So a crash leaves nothing that other layers do not leave, too.
    """

    def __init__(self, here: HostLayers) -> None:
        self._layers, self._locks, self._timeout = here.home.layers, here.home.locks, here.home.timeout
        self._paths, self._systems, self._views = here.home.paths, here.systems, here.views
        self._removals, self._states = here.removals, here.states
        # The finished layer that Docker got last, and the follower of each layer that Docker has.
        self._last = ""
        self._followers: dict[str, str] = {}
        self._hanging: set[str] = set()
        self.reading = Background("reading layer", self._read, AT_ONCE)

    def got(self, layer: str) -> None:
        """Read a layer ahead that Docker has just got, if it is finished. It is mounted; the caller holds its lock."""
        if not self._states.is_finished(layer):
            return
        parents = self._views.parents(layer)
        if not parents or parents[0] == self._last:
            follower = self._follower(layer)
            if follower and self._is_finished(follower) and not self._systems.is_mounted(follower):
                self._followers[layer] = follower
        self._last = layer
        self.reading.later(layer, 0)

    def hangs(self, layer: str) -> bool:
        """Tell whether the process that reads a layer may hang in the kernel, and hold the layer longer than Docker."""
        return layer in self._hanging

    def _follower(self, layer: str) -> str | None:
        """Return the layer that comes next in a walk from the lowest layer up; None if there is none, or several."""
        children = set(self._layers.known_children(layer))
        inits = {child for child in children if child.endswith(INIT_SUFFIX)}
        children -= inits | {init[: -len(INIT_SUFFIX)] for init in inits}
        return children.pop() if len(children) == 1 else None

    def _read(self, layer: str) -> bool:
        follower = self._followers.pop(layer, "")
        try:
            self._run(layer, layer)
            if follower and self._is_wanted(layer):
                self._read_next(layer, follower)
        except EXPECTED_OF_PROGRAMS as error:
            # Nothing is lost: Docker reads the layer by itself, only more slowly.
            log.info("reading ahead of layer %s has ended: %s", layer, error)
        return True

    def _read_next(self, layer: str, follower: str) -> None:
        """Read the follower of a layer, and keep it mounted until Docker has put the layer."""
        with deadline.within(self._timeout), self._locks.hold(follower):
            if not self._is_finished(follower):
                return
            self._views.acquire_ahead(follower)
        until = time.monotonic() + KEPT_SECONDS
        try:
            self._run(follower, layer, follower)
            while self._is_wanted(layer) and self._is_finished(follower) and time.monotonic() < until:
                time.sleep(PAUSE)
        finally:
            self._views.release_ahead(follower)

    def _run(self, layer: str, *wanted: str) -> None:
        """Read what a layer brought, as long as Docker has one of the layers `wanted`."""
        directory = os.path.join(self._paths.point(layer), layer_state.ROOT)
        try:
            command.run_on(
                environment.python(read_ahead_process.__file__, directory, str(AT_ONCE)),
                timeout=self._timeout,
                give_up=lambda: not (self._is_finished(layer) and any(map(self._is_wanted, wanted))),
            )
        except (command.CommandTimeout, command.CommandGivenUp):
            # The process was killed, but it cannot die while it waits for the cluster.
            self._hanging.add(layer)
            raise
        self._hanging.discard(layer)

    def _is_finished(self, layer: str) -> bool:
        return self._states.is_finished(layer) and layer not in self._removals

    def _is_wanted(self, layer: str) -> bool:
        return self._views.is_mounted(layer, Place.DOCKER) and not self.reading.is_stopped()
