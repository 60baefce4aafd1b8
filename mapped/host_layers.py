"""The layers of one home on this host: all objects that map and mount them, and their work in the background.

home          what all share: the pool and its layers, paths, locks
removals      which layers Docker was told are removed
devices       images are mapped
systems       the layers' own file systems are mounted, for their users
views         each layer is joined with its parents, for Docker and for ourselves
states        how far each layer has come
access        a layer for the length of its use
parents       layers that get children
handed_out    layers that clients mount themselves
from_before   what an earlier life of this process left
"""

from __future__ import annotations

import logging

from cluster.liveness import Liveness
from host import deadline
from host.background import Background
from host.failure import EXPECTED
from mapped.access import Access
from mapped.availability import Availability
from mapped.devices import Devices
from mapped.file_systems import FileSystems
from mapped.from_before import FromBefore
from mapped.handed_out import HandedOut
from mapped.home import Home
from mapped.overlays import Overlays
from mapped.parents import Parents
from mapped.removals import Removals
from mapped.stacks import AT_ONCE, Stacks
from mapped.states import States
from mapped.views import Views

log = logging.getLogger("host_layers")

# A layer without users stays mapped for MAPPED_SECONDS: it is wanted again within moments, or not for long. If its map
# took long, it stays for MAPPED_TIMES that time: then Docker's next steps take longer, too.
MAPPED_SECONDS, MAPPED_TIMES = 3.0, 10.0


class HostLayers:
    """Puts all of it together, and decides how long a layer stays mapped. `root_owner`: see Overlays."""

    def __init__(self, home: Home, liveness: Liveness, root_owner: tuple[int, int]) -> None:
        self.home = home
        self.removals = Removals(home.paths)
        self.devices = Devices(home)
        self.systems = FileSystems(home, self.devices)
        overlays = Overlays(home, self.systems, root_owner)
        stacks = Stacks(home, self.devices, self.systems, self.leave_mapped)
        self.views = Views(home, self.devices, self.systems, overlays, stacks)
        self.states = States(home, self.systems, self.leave_mapped)
        availability = Availability(home, liveness, self.devices, self.states, self.leave_mapped)
        self.access = Access(home, self.removals, self.views, self.states, availability)
        self.parents = Parents(home, self.systems, self.views, self.states, availability)
        self.handed_out = HandedOut(
            home,
            self.removals,
            systems=self.systems,
            stacks=stacks,
            overlays=overlays,
            availability=availability,
        )
        self.from_before = FromBefore(home, self.devices, self.systems, self.views)
        self.unmapping = Background("unmapping layer", self._unmap, AT_ONCE)
        self.mapping = Background("mapping layer", self._map_ahead, AT_ONCE)

    def leave_mapped(self, layer: str) -> None:
        """Unmap a layer in the background after a while, if it has no users then."""
        self.unmapping.later(layer, max(MAPPED_SECONDS, MAPPED_TIMES * self.systems.cost(layer)))

    def map_parents(self, layer: str) -> None:
        """Map all that is below a layer in the background: whatever comes next needs it. The layer was just made."""
        for parent in self.home.layers.parents(layer):
            if not self.systems.is_mounted(parent):
                self.mapping.later(parent, 0)

    def _unmap(self, layer: str) -> bool:
        with deadline.within(self.home.timeout), self.home.locks.hold(layer):
            self.views.unmap_unused(layer, tidy=layer not in self.removals)
        return True

    def _map_ahead(self, layer: str) -> bool:
        with deadline.within(self.home.timeout), self.home.locks.hold(layer):
            if layer in self.removals:
                return True
            try:
                self.views.map_ahead(layer)
            except EXPECTED as error:
                # The next user of the layer meets the error, and is told.
                log.info("layer %s is not mapped ahead: %s", layer, error)
        return True
