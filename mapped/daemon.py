"""The daemon for which a request works. Once the daemon has ended, its requests mount nothing any more.

A dockerd that ends unmounts all that is below its data root. The next dockerd mounts that root anew, and so hides what
was mounted there meanwhile.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

from mapped.unmounting import LayerBusy

# The daemon that this thread works for. Work in the background is for no daemon.
_asking: contextvars.ContextVar[object] = contextvars.ContextVar("asking", default=None)


class Daemon:
    """The present daemon of one home. It decides whether a request may still mount something."""

    def __init__(self) -> None:
        self._now = object()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Let the `with` block work for the present daemon."""
        token = _asking.set(self._now)
        try:
            yield
        finally:
            _asking.reset(token)

    def end(self) -> None:
        """Learn that the daemon ends: it waits for its requests no more, and the next daemon begins."""
        self._now = object()

    def refuse_if_ended(self, layer: str) -> None:
        """Raise LayerBusy if a layer is about to be mounted for a daemon that has ended."""
        if _asking.get() not in (None, self._now):
            raise LayerBusy(f"layer {layer} is not mounted: the daemon that asked for it has ended")
