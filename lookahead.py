"""The layer that Docker will ask for next: mounted, and read ahead, while Docker still reads the one before.

`docker save` and `docker push` get the layers of an image one after the other, from the lowest up, and read each
whole. To map, mount and read from the cluster then takes as long as what Docker does with it. The lowest layer of a
chain begins such a walk, and each that was made of the one got before goes on with it; anything else that gets a
finished layer, BuildKit's mounts for one, does not. The next is only known where a layer has one child that is none of
a container's.

A layer is mounted ahead by our own mount, so a crash leaves what other work of ours leaves, and the next start ends it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from behind import Behind, in_turn
from layers import BASE, INIT_SUFFIX, Layers
from locks import Locks

log = logging.getLogger("lookahead")

# How long what was mounted ahead waits for Docker, and how recently it must have got the layer before.
AHEAD_SECONDS = 10.0
RECENT_SECONDS = 60.0


class LookAhead:
    """What is mounted ahead for Docker.

    `mount` mounts a layer if it is a finished one that nobody has, and tells whether it did; `unmount` undoes that.
    Both are called with the layer's lock held. `expected`: what they, and the cluster, may raise.
    """

    def __init__(
        self,
        layers: Layers,
        locks: Locks,
        mount: Callable[[str], bool],
        unmount: Callable[[str], None],
        expected: tuple[type[Exception], ...],
    ) -> None:
        self._layers, self._locks = layers, locks
        self._mount, self._unmount = mount, unmount
        self._expected = expected
        # When Docker got which image last.
        self._got: dict[str, float] = {}
        self._held: set[str] = set()
        self._guessing = Behind("looking ahead", self._guess, ())
        self._ending = Behind("unmounting what was mounted ahead", self._end, expected)

    def got(self, layer: str) -> None:
        """Docker has got a finished layer."""
        now = time.monotonic()
        self._got = {image: then for image, then in self._got.items() if now - then < RECENT_SECONDS}
        self._got[self._layers.image(layer)] = now
        self._guessing.later(layer, 0)

    def leave(self, layer: str) -> None:
        """Docker has put a layer, or removes it; the caller holds its lock. Raises LayerBusy."""
        if layer in self._held:
            self._unmount(layer)
            self._held.discard(layer)

    def pause(self, timeout: float) -> bool:
        """Begin nothing until `resume`; tell whether what is being done ended within `timeout` seconds."""
        return all(in_turn(timeout, self._guessing.pause, self._ending.pause))

    def resume(self) -> None:
        """Go on after `pause`."""
        self._guessing.resume()
        self._ending.resume()

    def end(self) -> None:
        """Begin nothing any more. What is mounted ahead stays so: who comes after finds it on the host."""
        self._guessing.end()
        self._ending.end()

    def finish(self, timeout: float) -> bool:
        """Unmount all of it; tell whether that was tried within `timeout` seconds."""
        return all(in_turn(timeout, self._guessing.pause, self._ending.drain))

    def _guess(self, layer: str) -> bool:
        try:
            follower = self._follower(layer)
            if follower:
                with self._locks.hold(follower):
                    if self._mount(follower):
                        self._held.add(follower)
                        self._ending.later(follower, AHEAD_SECONDS)
        except self._expected as error:
            # Docker gets it all the same, only later, and is told then what is wrong.
            log.info("nothing is mounted ahead of layer %s: %s", layer, error)
        return True

    def _follower(self, layer: str) -> str | None:
        """The layer that comes next in a walk from below; None if there is no walk, or it could go several ways."""
        origin = self._layers.describe(layer).parent
        if origin is None or origin.image not in {*self._got, self._layers.image(BASE)}:
            return None
        children = set(self._layers.children(layer))
        inits = {child for child in children if child.endswith(INIT_SUFFIX)}
        children -= inits | {init[: -len(INIT_SUFFIX)] for init in inits}
        return children.pop() if len(children) == 1 else None

    def _end(self, layer: str) -> bool:
        with self._locks.hold(layer):
            self.leave(layer)
        return True
