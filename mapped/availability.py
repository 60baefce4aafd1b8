"""Whether a layer may be mapped on this host, and why not: it is another host's, in use elsewhere, or gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import rbdcli
from cluster.liveness import Liveness
from images.layers import LayerError
from mapped.devices import Devices
from mapped.home import Home
from mapped.states import States

# While the cluster sees that we live, nobody takes our layers; cut off from it, not for another 30 s (liveness.py).
OWNER_SECONDS = 20.0


class Availability:
    """Availability of one home's layers. `idle` is told which layers are mapped for nobody any more."""

    def __init__(
        self, home: Home, liveness: Liveness, devices: Devices, states: States, idle: Callable[[str], None]
    ) -> None:
        self._layers, self._liveness, self._idle = home.layers, liveness, idle
        self._devices, self._states = devices, states

    @contextlib.contextmanager
    def checked(self, layer: str) -> Iterator[None]:
        """Map a layer in the `with` block, if it is ours. Raises LayerError, which says why it cannot be mapped."""
        try:
            self.check_owner(layer)
            yield
        except (rbdcli.ImageMissing, rbdcli.ImageLocked) as error:
            raise self.unavailable(layer, error) from None
        except Exception:
            if self._devices.device(layer):
                # What could not be unmapped again is, later.
                self._idle(layer)
            raise

    def check_owner(self, layer: str) -> None:
        """Raise LayerError if a layer is another host's. One that is mapped here cannot be.

        One that is only looked at may have become another's since it was ours: whoever has it, it stays as it is.
        """
        if self._devices.device(layer) is None:
            lease = OWNER_SECONDS if self._liveness.shown else 0.0
            self._layers.check_owner(layer, lease=float("inf") if self._states.is_finished(layer) else lease)

    def unavailable(self, layer: str, error: rbdcli.RbdError) -> Exception:
        """Return the error that says why a layer cannot be mapped: ENOENT is also that of a kernel without rbd."""
        if not self._layers.exists(layer):
            return LayerError(f"layer {layer} does not exist: no image {self._layers.image(layer)}")
        if isinstance(error, rbdcli.ImageLocked):
            return LayerError(f"layer {layer} is in use elsewhere: {self._layers.holder(layer)}: {error}")
        return error
