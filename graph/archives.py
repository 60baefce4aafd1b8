"""The archives of layers: one is laid down in a layer, or made of what a layer changes in its parent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from archive import transfer
from graph.space import Space
from images.layers import LayerError
from mapped.host_layers import HostLayers
from mapped.states import State


class Compared(NamedTuple):
    """Two trees to be compared: `root`, and `below` (None: with nothing).

    `own`: root is only what the layer brought, and below is all that is below it.
    """

    root: str
    below: str | None
    own: bool


class Archives:
    """The archives of one home's layers. `ids` maps the owners in them to the host's.

    No lock of a layer is held while an archive runs. Everything raises transfer.ArchiveError, deadline.Overdue if a
    layer's file system does nothing for as long as one command may take, and what Access.acquire raises.
    """

    def __init__(self, here: HostLayers, ids: transfer.IdMaps) -> None:
        self._here, self._ids = here, ids
        self._access, self._states, self._timeout = here.access, here.states, here.home.timeout

    def apply(self, layer: str, stream: transfer.Readable) -> int:
        """Lay an archive down in a layer and return the sum of its entries' sizes, in bytes.

        A layer takes one archive: after a lost answer Docker sends the call again with an empty stream. One whose
        archive failed, or was cut off by a crash, is broken for good; only to remove it is left.
        """
        if self._states.is_finished(layer):
            raise LayerError(f"layer {layer} is finished: it had its archive, or has children; it takes no other")
        with self._access.view(layer, growing=True) as root:
            # It asks Ceph: what fails before the archive is begun may be tried again.
            space = self._space(layer)
            said = self._access.begin_archive(layer)
            try:
                size = transfer.apply(root, stream, self._ids, self._timeout, space.make)
                self._states.finish(layer, said)
            except transfer.ArchiveError as error:
                self._states.set(layer, State.BROKEN)
                raise space.explained(error) from None
            except BaseException:
                self._states.set(layer, State.BROKEN)
                raise
        return size

    def diff(self, layer: str, parent: str) -> Iterator[bytes]:
        """Yield the archive of what a layer changes in its parent ("" for everything); close it to end early."""
        with self._compared(layer, parent) as (root, below, own):
            yield from transfer.diff(root, below, self._ids, self._timeout, own=own)

    def changes(self, layer: str, parent: str) -> list[transfer.Change]:
        """List what a layer changes in its parent."""
        with self._compared(layer, parent) as (root, below, own):
            return transfer.changes(root, below, self._timeout, own=own)

    def diff_size(self, layer: str, parent: str) -> int:
        """Return the bytes that a layer adds to its parent."""
        with self._compared(layer, parent) as (root, below, own):
            return transfer.size(root, below, self._timeout, own=own)

    @contextlib.contextmanager
    def _compared(self, layer: str, parent: str) -> Iterator[Compared]:
        """Have two trees to be compared for the length of a `with` block."""
        with contextlib.ExitStack() as stack:
            if parent:
                self._here.removals.refuse(parent)
            own = stack.enter_context(self._access.own(layer))
            if own.parent == parent:
                yield Compared(own.root, own.below, own=True)
                return
            stack.pop_all().close()
            view = stack.enter_context(self._access.view(layer))
            below = stack.enter_context(self._access.view(parent)) if parent else None
            yield Compared(view, below, own=False)

    def _space(self, layer: str) -> Space:
        """Return the space in a mounted layer, which may grow for its archive."""
        home = self._here.home

        def grow(size: int) -> None:
            with home.bounds(), home.locks.hold(layer):
                self._here.systems.grow_mounted(layer, size)

        return Space(home.paths.point(layer), home.layers.describe(layer).size, grow, self._timeout)
