"""The graph driver: what Docker asks of a layer, from Create to Remove, one method per call.

The contract of each method is in moby's `daemon/graphdriver/driver.go`. dockerd also makes odd calls (Remove without
Put, Put without Get, Get and Put after a live restore, Init twice): each is described where the code meets it. This
module knows paths, counts and errors; it does not know HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping

import rbdcli
from archive import transfer
from cluster.liveness import Liveness
from graph import status
from graph.archives import Archives
from graph.bounds import Bounds
from graph.figures import Figures
from graph.lifetime import Lifetime
from graph.read_ahead import ReadAhead
from graph.reaper import Reaper
from host import command, deadline
from images.layers import LayerError, LayerRefused
from images.names import BASE
from images.options import Options, parse_layer_size, pool_of
from mapped.home import Home
from mapped.host_layers import HostLayers
from mapped.states import State
from mapped.unmounting import LayerBusy
from mapped.view import Place

log = logging.getLogger("driver")

# dockerd uses 64 hexadecimal digits, followed by -init for an init layer; BuildKit uses 25 digits of base 36; moby's
# graphtest uses words. No character may have a meaning in a path, in an option or in rbd's names of images.
_LAYER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
# With a sick cluster, a Remove waits so long for the owner of a layer, and so long for the kernel's last writes to it.
ASK_SECONDS, DISCARD_SECONDS = 5.0, 15.0


class Driver:
    """One Docker daemon's layers: checks each call, and hands it to the part that does the work.

    `bounds` are those of each request. `lifetime` is the start and the end of the driver, `figures` tell what it has.
    The caller holds no locks.
    """

    def __init__(self, path: str, options: Options, ids: transfer.IdMaps) -> None:
        """`path` is the home. This neither asks the cluster nor touches the host."""
        home = self._home = Home(path, options, pool_of(options))
        liveness = Liveness(home.pool, options.imageprefix, home.layers.owner(), self._wake)
        here = self._here = HostLayers(home, liveness, _root_owner(ids))
        self._removals, self._access = here.removals, here.access
        self._archives = Archives(here, ids)
        self._reaper = Reaper(here)
        self._ahead = ReadAhead(here)
        self.bounds = Bounds(home)
        self.lifetime = Lifetime(here, liveness, self.bounds, self._reaper, self._ahead.reading)
        self.figures = Figures(here, self._reaper.works, self._ahead.reading)

    # -- create and remove -------------------------------------------------------------------

    def create(self, layer: str, parent: str, storage_opt: Mapping[str, str] | None) -> None:
        """Make a layer on `parent` ("" for none). The parent is finished from then on, unless it is an init layer.

        On failure the new image is deleted; if it is still mapped, in the background. Raises LayerError, OptionError,
        and what Access.acquire raises.
        """
        _check_id(layer)
        if parent:
            _check_id(parent)
            self._removals.refuse(parent)
            if parent == layer:
                raise LayerRefused(f"layer {layer} cannot be its own parent")
        size = parse_layer_size(storage_opt)
        self._reaper.postpone()
        if layer in self._removals and not self._reaper.wait_for(layer, deadline.left(self._home.timeout)):
            raise LayerError(f"layer {layer} is still being removed; try again")
        with self._home.locks.hold(layer), contextlib.ExitStack() as undo:
            grown = self._make(layer, parent, size, undo)
            undo.callback(self._here.states.forget, layer)
            self._here.states.set(layer, State.OPEN)
            if parent:
                self._here.map_parents(layer)
            if grown:
                self._here.systems.grow(layer)
            undo.pop_all()

    def _make(self, layer: str, parent: str, size: int | None, undo: contextlib.ExitStack) -> bool:
        """Make the image of a layer. Tell whether the file system in it is smaller than the image, and must grow."""
        with self._home.locks.hold(parent) if parent else contextlib.nullcontext():
            if parent:
                self._removals.refuse(parent)
                self._here.parents.make_ready(layer, parent)
            grown = self._home.layers.create(layer, parent or None, size)
            undo.callback(self._unmake, layer)
        return grown

    def _unmake(self, layer: str) -> None:
        """Delete the image of a layer that was just made. If it is still mapped, it goes in the background."""
        if self._here.devices.device(layer) is None:
            self._home.layers.undo(layer)
        else:
            self._removals.note(layer)
            self._reaper.begin(layer)

    def remove(self, layer: str) -> None:
        """Remove a layer and all that is mounted of it. A layer that does not exist counts as removed.

        For Docker the layer is gone at once. It is noted on this host as removed, and its image goes in the background
        once no other layer stands on it. On failure the layer stays, perhaps unmounted. Raises LayerBusy, LayerError if
        the layer belongs to another host or its record cannot be read, deadline.Overdue, OSError.
        """
        _check_id(layer)
        if layer in self._removals:
            return
        with self._home.locks.hold(layer):
            if layer in self._removals or not self._is_there(layer):
                return
            self._discard(layer)
            self._removals.note(layer)
            self._here.states.forget(layer)
        self._reaper.begin(layer)
        self._reaper.postpone()

    def _is_there(self, layer: str) -> bool:
        """Tell whether a layer that is to be removed is there. Raises LayerError if it belongs to another host."""
        if self._here.devices.device(layer):
            return True
        try:
            # An owner of earlier will do here: before the image is deleted, the owner is asked for again.
            with deadline.within(ASK_SECONDS):
                self._home.layers.check_owner(layer, lease=float("inf"))
        except rbdcli.ImageMissing:
            return False
        except command.CommandError as error:
            log.warning("layer %s is removed once the cluster answers: %s", layer, error)
        return True

    def _discard(self, layer: str) -> None:
        """Unmount a layer that is to be removed, as far as the cluster lets the kernel do it now.

        Raises LayerBusy if somebody has the layer mounted.
        """
        try:
            with deadline.within(DISCARD_SECONDS):
                self._here.views.discard(layer)
        except (command.CommandTimeout, deadline.Overdue) as error:
            log.warning("layer %s is removed once the kernel has let go of it: %s", layer, error)
        except LayerBusy as error:
            if not self._ahead.hangs(layer):
                raise
            log.warning("layer %s is removed once what reads it has ended: %s", layer, error)

    def exists(self, layer: str) -> bool:
        """Tell whether a layer has an image and was not removed. Raises LayerError, command.CommandError."""
        _check_id(layer)
        return layer not in self._removals and self._home.layers.exists(layer)

    # -- mount -------------------------------------------------------------------------------

    def get(self, layer: str, label: str) -> str:
        """Mount a layer for Docker and return the path of its root, which is the same on every call.

        `label` is the SELinux label of all that is in the view. Each `get` takes a `put`. On failure nothing more than
        before is mounted. Raises what Access.acquire raises.
        """
        _check_id(layer)
        self._removals.refuse(layer)
        with self._home.locks.hold(layer):
            self._access.acquire(layer, Place.DOCKER, label=label)
            self._ahead.got(layer)
        return self._here.views.point(layer, Place.DOCKER)

    def put(self, layer: str) -> None:
        """Undo one `get`. Do nothing if the layer is not mounted: dockerd makes such calls after a crash.

        Raises LayerError if `layer` is no id. Raises LayerBusy, command.CommandError, deadline.Overdue, OSError if the
        unmount fails: it is tried again in the background.
        """
        _check_id(layer)
        if layer not in self._removals:
            self._access.release(layer, Place.DOCKER)

    # -- archives ----------------------------------------------------------------------------

    def apply_diff(self, layer: str, stream: transfer.Readable) -> int:
        """Lay an archive down in a layer and return the sum of its entries' sizes, in bytes.

        What is left behind on failure, and the errors, are those of Archives.apply.
        """
        _check_id(layer)
        return self._archives.apply(layer, stream)

    def diff(self, layer: str, parent: str) -> Iterator[bytes]:
        """Yield the archive of what a layer changes in its parent ("" for everything). Close it to end early.

        Raises what Archives.diff raises.
        """
        self._check_pair(layer, parent)
        yield from self._archives.diff(layer, parent)

    def changes(self, layer: str, parent: str) -> list[transfer.Change]:
        """List what a layer changes in its parent ("" for none). Raises what Archives.changes raises."""
        self._check_pair(layer, parent)
        return self._archives.changes(layer, parent)

    def diff_size(self, layer: str, parent: str) -> int:
        """Return the bytes that a layer adds to its parent ("" for none). Raises what Archives.diff_size raises."""
        self._check_pair(layer, parent)
        return self._archives.diff_size(layer, parent)

    def _check_pair(self, layer: str, parent: str) -> None:
        _check_id(layer)
        self._removals.refuse(layer)
        if parent:
            _check_id(parent)

    # -- what is going on --------------------------------------------------------------------

    def status(self) -> list[tuple[str, str]]:
        """Return the rows of `docker info`. If the cluster does not answer, its rows say so; nothing is raised."""
        count, mapped = self._home.layers.count, self._here.devices.mapped
        return status.rows(self._home.pool, self._home.options, count, lambda: len(mapped()))

    def metadata(self, layer: str) -> dict[str, str]:
        """Return what `docker inspect` shows of a layer. Raises LayerError, command.CommandError."""
        _check_id(layer)
        self._removals.refuse(layer)
        layers, pool = self._home.layers, self._home.pool
        size, parents = layers.describe(layer).size, layers.parents(layer)
        mounted = self._here.views.is_mounted(layer, Place.DOCKER)
        return {
            "Pool": "/".join(filter(None, (pool.name, pool.namespace))),
            "Image": layers.image(layer),
            "Device": (self._here.devices.device(layer) or "") if mounted else "",
            "Parent": layers.image(parents[0]) if parents else "",
            "Depth": str(len(parents)),
            "Size": str(size),
            "Filesystem": self._home.options.fs,
            "MountPoint": self._here.views.point(layer, Place.DOCKER) if mounted else "",
        }

    def _wake(self) -> None:
        """Try again in the background what failed before: the cluster answers."""
        self._here.unmapping.wake()
        self._reaper.works.wake()


def _root_owner(ids: transfer.IdMaps) -> tuple[int, int]:
    """Return the owner (uid, gid) of the root directory of a layer without parents: root, as `ids` map it."""
    return (ids.uids[0].host_id, ids.gids[0].host_id) if ids.uids else (0, 0)


def _check_id(layer: str) -> None:
    """Raise LayerError unless `layer` is an id. An id becomes part of a path and of an image's name."""
    if not _LAYER_ID.fullmatch(layer) or layer == BASE:
        raise LayerRefused(f"{layer[:80]!r} is not a layer id; expected up to 128 letters, digits, - and _")
