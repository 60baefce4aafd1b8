"""What a layer needs before it gets a child: it is finished from then on, and nobody ever writes to it again."""

from __future__ import annotations

import rbdcli
from images.layers import INIT_SUFFIX, LayerRefused
from mapped.availability import Availability
from mapped.file_systems import FileSystems
from mapped.home import Home
from mapped.states import State, States
from mapped.view import Place
from mapped.views import Views


class Parents:
    """The layers of one home that get children. It decides whether a layer can have a child."""

    def __init__(
        self, home: Home, systems: FileSystems, views: Views, states: States, availability: Availability
    ) -> None:
        self._layers = home.layers
        self._systems, self._views, self._states, self._availability = systems, views, states, availability

    def make_ready(self, layer: str, parent: str) -> None:
        """Make `parent` ready to be the parent of the new `layer`: it is finished from then on.

        An init layer is not finished but unmounted: its image is copied. The caller holds the locks of both. On failure
        the parent may be finished. Raises LayerError if it can have no child, and what Access.acquire raises.
        """
        if self._views.is_writable(parent):
            # Docker has put the parent before it makes a layer on it, but that Put may have been lost.
            self._views.settle_put(parent)
        if self._views.is_writable(parent):
            raise LayerRefused(f"layer {layer}: its parent {parent} is mounted writable; put it first")
        state = self._state_of_parent(layer, parent)
        if parent.endswith(INIT_SUFFIX):
            self._systems.quiesce(parent)
        elif state is not State.FINISHED:
            self._finish_parent(parent)

    def _state_of_parent(self, layer: str, parent: str) -> State:
        self._states.refuse_broken(parent, f"layer {layer}: its parent {parent} is broken; remove it")
        try:
            self._availability.check_owner(parent)
            return self._states.of(parent)
        except rbdcli.ImageMissing:
            raise LayerRefused(
                f"layer {layer}: its parent {parent} does not exist: no image {self._layers.image(parent)}"
            ) from None
        except rbdcli.ImageLocked as error:
            raise self._availability.unavailable(parent, error) from None

    def _finish_parent(self, parent: str) -> None:
        with self._availability.checked(parent):
            self._views.acquire_own(parent, finished=False)
        try:
            self._systems.make_writable(parent)
            self._states.finish(parent, self._views.prepared(parent))
        finally:
            self._views.uncount(parent, Place.BELOW)
            self._views.unmount_unused(parent, Place.BELOW)
