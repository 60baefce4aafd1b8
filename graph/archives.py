"""The archives of layers: an archive is laid down in a layer, or made of what a layer changes in its parent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from archive import transfer
from graph.space import Space
from images.layers import LayerRefused
from mapped.host_layers import HostLayers
from mapped.states import State


class Compared(NamedTuple):
    """Two directories to be compared: `root`, and `below` (None: `root` is compared with nothing).

    `own`: `root` is only what the layer brought, and `below` is all that is below the layer.
    """

    root: str
    below: str | None
    own: bool


class Archives:
    """The archives of one home's layers. `ids` maps the owners of files in an archive to those on the host.

    The caller holds no lock of a layer, and none is held while an archive runs. Every method raises LayerError for a
    removed layer, transfer.ArchiveError, and what Access.acquire raises; deadline.Overdue also if a layer's file system
    does nothing for as long as one command may take.
    """

    def __init__(self, here: HostLayers, ids: transfer.IdMaps) -> None:
        self._here, self._ids = here, ids
        self._access, self._states, self._timeout = here.access, here.states, here.home.timeout

    def apply(self, layer: str, stream: transfer.Readable) -> int:
        """Lay an archive down in a layer and return the sum of its entries' sizes, in bytes.

        A layer takes one archive: after a lost answer Docker sends the call again with an empty stream. On failure the
        layer is broken for good, and can only be removed; so it is after a crash. If the failure came before the
        archive was begun, the layer is as before. Also raises what `stream.read` raises.
        """
        if self._states.is_finished(layer):
            raise LayerRefused(f"layer {layer} is finished: it had its archive, or has children; it takes no other")
        with self._access.view(layer, growing=True) as root:
            # This asks Ceph. If it fails, the archive is not begun yet, and Docker may try again.
            space = self._space(layer)
            state = self._access.begin_archive(layer)
            try:
                size = transfer.apply(root, stream, self._ids, self._timeout, space.make)
                self._states.finish(layer, state)
            except transfer.ArchiveError as error:
                self._states.set(layer, State.BROKEN)
                raise space.explained(error) from None
            except BaseException:
                self._states.set(layer, State.BROKEN)
                raise
        return size

    def diff(self, layer: str, parent: str) -> Iterator[bytes]:
        """Yield the archive of what a layer changes in its parent. With parent "" that is the whole layer.

        The caller closes the generator to end early: then the layers are released.
        """
        with self._compared(layer, parent) as (root, below, own):
            yield from transfer.diff(root, below, self._ids, self._timeout, own=own)

    def changes(self, layer: str, parent: str) -> list[transfer.Change]:
        """List what a layer changes in its parent. With parent "" that is the whole layer."""
        with self._compared(layer, parent) as (root, below, own):
            return transfer.changes(root, below, self._timeout, own=own)

    def diff_size(self, layer: str, parent: str) -> int:
        """Return the bytes that a layer adds to its parent. With parent "" these are all bytes of the layer."""
        with self._compared(layer, parent) as (root, below, own):
            return transfer.size(root, below, self._timeout, own=own)

    @contextlib.contextmanager
    def _compared(self, layer: str, parent: str) -> Iterator[Compared]:
        """Mount what is to be compared, for the `with` block: what the layer brought, if `parent` is its own parent."""
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
        """Return the space in a mounted layer. The layer may grow for its archive."""
        home = self._here.home

        def grow(size: int) -> None:
            with home.bounds(), home.locks.hold(layer):
                self._here.systems.grow_mounted(layer, size)

        return Space(home.paths.point(layer), home.layers.describe(layer).size, grow, self._timeout)
