"""What an earlier life of this process left of layers on this host, and what of it is still needed.

The host tells all of it: by its mount table, the list of mapped images, and the state in each layer's own file system.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import mounts
from host import deadline
from host.failure import EXPECTED_OF_PROGRAMS
from images import layer_state
from mapped import unmounting
from mapped.devices import Devices
from mapped.file_systems import FileSystems
from mapped.home import Home
from mapped.view import Place, View, user_of
from mapped.views import Views

log = logging.getLogger("from_before")

# Where BuildKit mounts a layer once more: to look at it (snapshot/localmounter_unix.go), and for a RUN
# (executor/runcexecutor/executor.go).
_OF_BUILDERS = re.compile(r"/buildkit-mount[^/]*$|/buildkit/executor/[^/]+/rootfs$")
# How long a start may wait for one layer from before: the others come after it.
LEARN_SECONDS = 5.0


class FromBefore:
    """Learns what was left of one home's layers. It decides what of it stays mounted."""

    def __init__(self, home: Home, devices: Devices, systems: FileSystems, views: Views) -> None:
        self._paths, self._timeout, self._clients_mount = home.paths, home.timeout, home.clients_mount
        self._devices, self._systems, self._views = devices, systems, views

    def learn(self, removed: Collection[str]) -> list[str]:
        """Learn from the host what an earlier life of this process had mapped. Return the layers that have no user now.

        A view for Docker counts as one user (moby's graphdriver/counter.go does the same). What was mounted or mapped
        for that life's own work has no user. If one layer cannot be looked at, this is logged, and the others go on.
        The layers in `removed` are not returned: the reaper unmaps them. Raises command.CommandError, OSError.
        """
        self._views.clear()
        self._paths.remove_stale_links()
        layers = self._paths.layers()
        # This is done first: a map that ends after we have looked would not be seen.
        self._devices.end_maps(layers)
        table = mounts.table()
        mounted = mounts.visible(table)
        for found in table:
            if found.point.startswith(f"{self._paths.root}/") and mounted.get(found.point) is not found:
                log.error("%s is hidden by what was mounted above it, and goes with that", found.point)
        mapped = self._devices.by_layer(layers)
        for layer in layers:
            with _from_before(layer):
                self._learn(layer, mounted, mapped.get(layer, []), is_removed=layer in removed)
        for layer, view in self._views.items():
            with _from_before(layer):
                self._learn_parents(layer, view)
        return self._left_over(removed)

    def _left_over(self, removed: Collection[str]) -> list[str]:
        """Name the layers that are mapped without a user, or have a view without a user. Leave out those `removed`."""
        viewed = {layer for layer, view in self._views.items() if 0 in view.counts.values()}
        return sorted(viewed.union(self._devices.unused()).difference(removed))

    def _learn(
        self, layer: str, mounted: Mapping[str, mounts.Mount], devices: Sequence[str], *, is_removed: bool
    ) -> None:
        mounts.make_directory(self._paths.directory(layer))
        self._systems.learn(layer, mounted.get(self._paths.point(layer)), devices)
        points = {place: self._views.point(layer, place) for place in Place}
        found = {place: mounted[point] for place, point in points.items() if point in mounted}
        if self._devices.device(layer) and self._clients_mount:
            # There are no views of ours (handed_out.py).
            return
        if self._devices.device(layer):
            self._views.learn(layer, found, is_removed=is_removed)
            return
        for item in found.values():
            log.error("unmounting %s: the layer's device is gone", item.point)
            unmounting.unmount(item.point, self._timeout)
        self._paths.remove(layer)

    def _learn_parents(self, layer: str, view: View) -> None:
        """Count each view that was found as a user of all layers that it is joined of."""
        for place in view.counts:
            self._systems.adopt(layer, user_of(layer, place), write=view.writable)
        state = layer_state.read(self._paths.point(layer), self._timeout)
        if state is None or state.layer != layer:
            raise mounts.MountError(f"{self._paths.point(layer)} does not say which layer it is")
        view.parents, view.parent = state.parents, state.init or next(iter(state.parents), "")
        if state.finished:
            self._systems.set_finished(layer)
        for parent in state.parents:
            self._systems.set_finished(parent)
            for place in view.counts:
                self._systems.adopt(parent, user_of(layer, place), write=False)

    def settle(self, removed: Collection[str]) -> list[str]:
        """Keep the views mounted that containers still use, with one user each. Unmount the rest: Docker started anew.

        Return the layers that have no user now, without those `removed`. If one layer cannot be unmounted, this is
        logged, and the others go on. Raises OSError.

        A running container (live-restore) holds its view in its own mount namespace. A builder that was killed with the
        former daemon has left mounts in ours.
        """
        self._unmount_builders()
        for layer, view in self._views.items():
            if Place.DOCKER in view.counts and layer not in removed:
                with _from_before(layer):
                    self._views.settle(layer)
        return self._left_over(removed)

    def _unmount_builders(self) -> None:
        """Unmount what BuildKit left mounted: no build is running now.

        dockerd renames the directory in which some of these mounts are, and tries to delete it.
        """
        views = {self._paths.source(layer) for layer in self._paths.layers()}
        for item in reversed(mounts.table()):
            if item.source in views and _OF_BUILDERS.search(item.point):
                log.warning("unmounting %s, left behind by a builder", item.point)
                with _from_before(item.point):
                    unmounting.unmount(item.point, self._timeout)


@contextlib.contextmanager
def _from_before(what: str) -> Iterator[None]:
    """Do something about a layer or a mount from before, in LEARN_SECONDS. A failure is logged, and not raised."""
    try:
        with deadline.within(LEARN_SECONDS):
            yield
    except EXPECTED_OF_PROGRAMS as error:
        log.error("%s from before: %s", what, error)
