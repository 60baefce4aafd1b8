"""The daemon for which a request works: what it asked for mounts nothing any more once it has ended.

A dockerd that ends unmounts all that is below its data root, and the next one mounts that root anew, above what is
mounted meanwhile.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

from mapped.unmounting import LayerBusy

# What is done in the background is for no daemon.
_asking: contextvars.ContextVar[object] = contextvars.ContextVar("asking", default=None)


class Daemon:
    """The daemon of now."""

    def __init__(self) -> None:
        self._now = object()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Do what the daemon of now asks for in the `with` block."""
        token = _asking.set(self._now)
        try:
            yield
        finally:
            _asking.reset(token)

    def end(self) -> None:
        """The daemon ends, and waits no more for what it has asked for."""
        self._now = object()

    def refuse_if_ended(self, layer: str) -> None:
        """Raise LayerBusy if a layer is about to be mounted for a daemon that has ended."""
        if _asking.get() not in (None, self._now):
            raise LayerBusy(f"layer {layer} is not mounted: the daemon that asked for it has ended")
