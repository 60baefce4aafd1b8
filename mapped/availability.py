"""Whether a layer may be mapped on this host, and why not: another host owns it or has it in use, or it is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import rbdcli
from cluster.liveness import Liveness
from images.layers import LayerError, LayerRefused
from mapped.devices import Devices
from mapped.home import Home
from mapped.states import States

# While the cluster sees that we live, no other host takes our layers, nor in the 30 s after it has lost sight of us
# (liveness.py). So an answer about the owner of a layer counts for so long.
OWNER_SECONDS = 20.0


class Availability:
    """Decides whether a layer of one home may be mapped here. `idle` is called with a layer that is mapped unused."""

    def __init__(
        self, home: Home, liveness: Liveness, devices: Devices, states: States, idle: Callable[[str], None]
    ) -> None:
        self._layers, self._liveness, self._idle = home.layers, liveness, idle
        self._devices, self._states = devices, states

    @contextlib.contextmanager
    def checked(self, layer: str) -> Iterator[None]:
        """Check the owner of a layer, for a `with` block that maps it. The caller holds its lock.

        Raises LayerError with the reason if the layer cannot be mapped, and what `check_owner` and the block raise.
        """
        try:
            self.check_owner(layer)
            yield
        except (rbdcli.ImageMissing, rbdcli.ImageLocked) as error:
            raise self.unavailable(layer, error) from None
        except Exception:
            if self._devices.device(layer):
                # The layer is still mapped: it is unmapped later, in the background.
                self._idle(layer)
            raise

    def check_owner(self, layer: str) -> None:
        """Raise LayerError if another host owns a layer. It cannot if the layer is mapped here.

        For a finished layer, an answer of any age is good enough: whoever owns it now, nobody writes to it. Raises
        rbdcli.ImageMissing if the layer has no image, command.CommandError.
        """
        if self._devices.device(layer) is None:
            lease = OWNER_SECONDS if self._liveness.shown else 0.0
            self._layers.check_owner(layer, lease=float("inf") if self._states.is_finished(layer) else lease)

    def unavailable(self, layer: str, error: rbdcli.RbdError) -> Exception:
        """Return the error that says why a layer cannot be mapped. It is `error` if the image is there and not locked.

        ENOENT alone does not tell: a kernel without rbd gives it, too. Raises LayerError, command.CommandError.
        """
        if not self._layers.exists(layer):
            return LayerRefused(f"layer {layer} does not exist: no image {self._layers.image(layer)}")
        if isinstance(error, rbdcli.ImageLocked):
            return LayerError(f"layer {layer} is in use elsewhere: {self._layers.holder(layer)}: {error}")
        return error
