"""A layer with all that is below it, mapped and mounted for one user. It is joined elsewhere.

The caller holds the layer's lock around `acquire` and `release`; the locks of its parents are taken here.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import rbdcli
from mapped.devices import Devices
from mapped.file_systems import FileSystems, LayerLost
from mapped.home import Home

# So many parents are mapped at the same time.
AT_ONCE = 4


class Stacks:
    """The stacks of one home's layers. It decides in which order the layers of a stack are mapped and released.

    `idle` is called with a layer that is mapped and has no user any more.
    """

    def __init__(self, home: Home, devices: Devices, systems: FileSystems, idle: Callable[[str], None]) -> None:
        self._layers, self._locks = home.layers, home.locks
        self._devices, self._systems, self.idle = devices, systems, idle

    def acquire(self, layer: str, user: str, parents: Sequence[str], own: Callable[[], None]) -> None:
        """Map and mount a layer by `own`, and at the same time its parents. Parents that are mounted need no thread.

        On failure some may be mounted for `user`: `release` undoes that. Raises LayerLost for a parent that has no
        image any more, what FileSystems.acquire raises, and what `own` raises.
        """
        there = [parent for parent in parents if self._systems.is_mounted(parent)]
        for parent in there:
            self._acquire_parent(layer, user, parent)
        missing = [parent for parent in parents if parent not in there]
        if not missing:
            own()
            return
        with ThreadPoolExecutor(AT_ONCE) as threads:
            run = self._acquire_parent
            mapping = [threads.submit(contextvars.copy_context().run, run, layer, user, parent) for parent in missing]
            try:
                own()
                for each in mapping:
                    each.result()
            except BaseException:
                # Those that were not begun would only take time.
                for each in mapping:
                    each.cancel()
                raise

    def _acquire_parent(self, layer: str, user: str, parent: str) -> None:
        try:
            with self._locks.hold(parent):
                self._systems.acquire(parent, user, write=False, finished=True)
        except rbdcli.ImageMissing:
            raise LayerLost(
                f"layer {layer} cannot be mounted: what is below it, layer {parent}, does not exist any more (no "
                f"image {self._layers.image(parent)}); remove it"
            ) from None

    def release(self, layer: str, user: str, parents: Iterable[str], *, flush: bool = True) -> None:
        """Undo `acquire`. `flush`: what was written to the layer is in the cluster then.

        All are released, whatever fails. Raises what FileSystems.release raises.
        """
        with contextlib.ExitStack() as stack:
            for parent in parents:
                stack.callback(self._release_parent, parent, user)
            stack.callback(self.tell_idle, layer)
            self._systems.release(layer, user, flush=flush)

    def _release_parent(self, parent: str, user: str) -> None:
        # Without its lock: with a sick cluster, others may hold that for long.
        self._systems.uncount(parent, user)
        self.tell_idle(parent)

    def tell_idle(self, layer: str) -> None:
        """Call `idle` for a layer that is mapped, if it has no user."""
        if self._devices.device(layer) and not self._systems.users(layer):
            self.idle(layer)
