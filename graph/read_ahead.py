"""What Docker will read next is read from the cluster before it asks: of the layer that it has got, and of the next.

`docker save` and `docker push` get each finished layer of an image, and read what it brought: a save one after the
other, from the lowest up, a push several at once, from the highest down. So the next layer is one that nobody had just
now. It is known where a layer has one child that is none of a container's; only what this process has made is looked
at, since to ask the cluster would take longer than it gives.

To read ahead is a favour: what is wrong is told to who gets the layer.
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
# What follows a layer that Docker reads for longer is let go; and how often it is looked whether it still does.
KEPT_SECONDS, PAUSE = 60.0, 0.1


class ReadAhead:
    """Reads ahead for Docker.

    What is read is mounted as any other layer that somebody needs, so a crash leaves nothing else.
    """

    def __init__(self, here: HostLayers) -> None:
        self._layers, self._locks, self._timeout = here.home.layers, here.home.locks, here.home.timeout
        self._paths, self._systems, self._views = here.home.paths, here.systems, here.views
        self._removals, self._states = here.removals, here.states
        # The finished layer that Docker got last, and what follows those that it has.
        self._last = ""
        self._followers: dict[str, str] = {}
        self._hanging: set[str] = set()
        self.reading = Background("reading layer", self._read, AT_ONCE)

    def got(self, layer: str) -> None:
        """Docker has got a layer, and has it mounted; one that is not finished is not read ahead."""
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
        """Tell whether what reads a layer may hang in the kernel, and so hold it for longer than Docker does."""
        return layer in self._hanging

    def _follower(self, layer: str) -> str | None:
        """Return the layer that comes next in a walk from below; None if it could go several ways."""
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
            # The layers are as good without it, only slower.
            log.info("reading ahead of layer %s has ended: %s", layer, error)
        return True

    def _read_next(self, layer: str, follower: str) -> None:
        """Read what follows a layer, and keep it mounted until Docker has put that."""
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
        """Read what a layer brought, as long as Docker has any of those that are `wanted`."""
        directory = os.path.join(self._paths.point(layer), layer_state.ROOT)
        try:
            command.run_on(
                environment.python(read_ahead_process.__file__, directory, str(AT_ONCE)),
                timeout=self._timeout,
                give_up=lambda: not (self._is_finished(layer) and any(map(self._is_wanted, wanted))),
            )
        except (command.CommandTimeout, command.CommandGivenUp):
            # It was killed; while it waits for the cluster it cannot die.
            self._hanging.add(layer)
            raise
        self._hanging.discard(layer)

    def _is_finished(self, layer: str) -> bool:
        return self._states.is_finished(layer) and layer not in self._removals

    def _is_wanted(self, layer: str) -> bool:
        return self._views.is_mounted(layer, Place.DOCKER) and not self.reading.is_stopped()
