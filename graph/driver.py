"""The graph driver: what Docker asks of a layer, from Create to Remove, one method per call.

The contract of each method is moby's `daemon/graphdriver/driver.go`; the odd calls that dockerd really
makes (Remove without Put, Put without Get, Get and Put after a live restore, Init twice) are told where
they are met. Paths, counts and errors are ours; HTTP is not.

Lock order: a layer before its parents. A layer's lock is held while it is made, mapped, mounted,
unmounted or removed, never while an archive runs: Docker feeds the Diff of one layer into the
ApplyDiff of another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping

import mounts
import rbdcli
from archive import transfer
from cluster import diagnosis, rados_objects
from cluster.claim import REBOOT_SECONDS
from cluster.liveness import Liveness
from graph import preconditions, status
from graph.read_ahead import Ahead
from graph.reaper import Reaper
from graph.removals import Removals
from graph.room import Room
from host import command, deadline
from host.background import Behind, in_turn
from host.locks import Locks
from images import layer_state
from images.base_image import BaseImage
from images.layers import BASE, INIT_SUFFIX, OBJECT_SIZE, LayerError, Layers
from images.options import Options, parse_layer_size
from mapped.busy import LayerBusy
from mapped.file_systems import FileSystems, LayerLost
from mapped.views import AT_ONCE, Place, Views

log = logging.getLogger("driver")

# 64 hexadecimal digits, with -init for an init layer, 25 digits of base 36 from BuildKit; moby's
# graphtest uses words. Nothing that a path, an option or rbd's image syntax could give a meaning to.
_LAYER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
# All that an archive left in memory is written out at its end: so many times as long as one command may take.
FLUSHES = 5
# dockerd ends by force 15 s after it was told to end (moby cmd/dockerd), and then leaves its data root mounted.
# What is still in the trash then is deleted in the background, or at the next start.
CLEANUP_SECONDS = 8.0
# A layer that Docker has put stays mapped for so long: it is wanted again within moments, or not for long. Where it
# took long to map it, it stays for so many times that: what Docker does next takes longer, too.
MAPPED_SECONDS, MAPPED_TIMES = 3.0, 10.0
# What is known of a layer: nothing was or is laid down in it; its archive failed, or was cut off; nobody writes to it.
OPEN, BROKEN, FINISHED = "open", "broken", "finished"
# A Remove waits so long for a sick cluster to say whose a layer is, or to take what the kernel still writes to it.
ASK_SECONDS, DISCARD_SECONDS = 5.0, 15.0
# While the cluster sees that we live, nobody takes our layers; cut off from it, not for another 30 s (liveness.py).
OWNER_SECONDS = 20.0


class DriverError(Exception):
    """A call is refused: one line that says what was wrong, what was expected, and the id."""


class Driver:
    """One Docker daemon's layers."""

    def __init__(self, home: str, options: Options, ids: transfer.IdMaps) -> None:
        self._options = options
        self._ids = ids
        self._home = home
        self._root = os.path.join(home, "mnt")
        pool = pool_of(options)
        self._pool = pool
        # What a sick cluster, or an rbd that prints what we do not know, may raise: no reason to give up.
        expected = (command.CommandError, deadline.Overdue, LayerBusy, LayerError, LayerLost, OSError, ValueError)
        self._layers = Layers(pool, options, home)
        self._locks = Locks()
        self._systems = FileSystems(
            pool, home, self._layers, fs=options.fs, options=options.fs_options, granule=OBJECT_SIZE
        )
        self._unmapping = Behind("unmapping layer", self._let_go, expected, AT_ONCE)
        self._mapping = Behind("mapping layer", self._warm, expected, AT_ONCE)
        owner = (ids.uids[0].host_id, ids.gids[0].host_id) if ids.uids else (0, 0)
        self._views = Views(
            pool,
            self._systems,
            self._layers,
            self._locks,
            options=options.view_options,
            root_owner=owner,
            idle=self._leave_mapped,
        )
        self._removals = Removals(self._systems)
        self._liveness = Liveness(pool, options.imageprefix, self._layers.owner(), self._wake)
        # Of a layer that is not in it, which is from before our start, its note tells.
        self._states: dict[str, str] = {}
        self._reaper = Reaper(
            self._layers, self._views, self._removals, self._locks, timeout=options.timeout, expected=expected
        )
        self._ahead = Ahead(
            self._layers,
            self._views,
            self._locks,
            timeout=options.timeout,
            is_finished=lambda layer: self._states.get(layer) == FINISHED and layer not in self._removals,
            expected=expected,
        )
        # What was found at the start and nobody needs.
        self._left_over: list[str] = []
        self._background = (self._reaper, self._mapping, self._ahead, self._unmapping)

    @property
    def timeout(self) -> float:
        """The seconds that one command may take."""
        return self._options.timeout

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Bound what is done in the `with` block, but for archives, which take as long as they have to say something.

        All commands together get twice the time of one; what must be undone then, deadline.GRACE_SECONDS each.
        """
        with self.explaining(), self._bounds():
            yield

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Let an error of the `with` block, a request, say what is wrong with the cluster, if that may be the cause."""
        try:
            with self._systems.asked():
                yield
        except command.CommandError as error:
            raise diagnosis.explain(self._pool, error) from None
        except deadline.Overdue as error:
            raise deadline.Overdue(f"{error}; {diagnosis.why(self._pool)}") from None

    def _bounds(self) -> contextlib.AbstractContextManager[None]:
        return deadline.within(2 * self._options.timeout)

    # -- the daemon's start and end -----------------------------------------------------------

    def claim(self) -> None:
        """Look whether all is there that is needed, and that no other machine lives under our name; claim it.

        May wait for that as long as the cluster takes what we were before a reboot for living. Ended by `end`. Raises
        readiness.NotReady, claim.OwnerTaken, command.CommandError.
        """
        with self.explaining(), deadline.within(REBOOT_SECONDS + 2 * self._options.timeout):
            self.check()
            self._liveness.claim()

    def prepare(self) -> None:
        """Make the base image; needs the claim. It does not disturb a driver that runs.

        Raises LayerError, command.CommandError.
        """
        self._make_home()
        BaseImage(self._layers, self._options, self._home).ensure()
        try:
            rados_objects.prepare_trash(self._pool)
        except command.CommandError as error:
            log.warning("once the pool is full, nothing can be removed from it: %s", error)

    def learn(self) -> None:
        """Learn what an earlier life of this process, or another object, had mounted. Raises command.CommandError."""
        self._make_home()
        self._removals.learn()
        self._left_over = self._views.learn(self._removals)

    def settle(self) -> None:
        """A daemon has just started: keep mounted what containers still use.

        Called also without an end of the daemon before it when it crashed or kept its containers (live-restore).
        """
        self._left_over = self._views.settle(self._removals)

    def start(self) -> None:
        """Begin what is done in the background: with what was left from before, and what was in the trash."""
        self._liveness.start()
        for layer in self._left_over:
            self._unmapping.later(layer, 0)
        self._reaper.start()

    def pause(self, timeout: float) -> None:
        """Do nothing in the background until `resume` or `end`: another object is about to take over from the host.

        Raises DriverError if something that was begun is not over within `timeout` seconds; it goes on then.
        """
        if not all(in_turn(timeout, *(work.pause for work in self._background))):
            self.resume()
            raise DriverError(f"the former daemon's layers are still being unmapped after {timeout:g} s")

    def resume(self) -> None:
        """Go on after `pause`."""
        for work in self._background:
            work.resume()

    def end(self) -> None:
        """Do nothing any more: another object has taken over, and could tell from the host what this one had mapped."""
        for work in self._background:
            work.end()
        self._liveness.stop()

    def check(self) -> None:
        """Raise readiness.NotReady unless what the options name, and the programs for it, are there."""
        preconditions.check(self._pool, self._options)

    def cleanup(self) -> None:
        """End as Docker ends: the trash is emptied as far as there is time. Containers' mounts stay."""
        self._systems.end_daemon()
        # What is to be mapped ahead stays undone: dockerd is about to let go of its data root.
        self.finish(CLEANUP_SECONDS)
        # What it has asked for meanwhile (a build that goes on to the last) is its, too.
        self._systems.end_daemon()

    def finish(self, timeout: float) -> bool:
        """Unmap what is mapped for nobody, remove what is removed, empty the trash, as far as `timeout` seconds allow.

        Tell whether all of it was tried.
        """
        # Each is asked, also when the one before took all the time: what it can do at once it does.
        works = (self._mapping.pause, self._ahead.pause, self._unmapping.drain, self._reaper.drain)
        return all([*in_turn(timeout, *works)])

    # -- create and remove -------------------------------------------------------------------

    def create(self, layer: str, parent: str, storage_opt: Mapping[str, str] | None) -> None:
        """Make a layer on `parent` ("" for none). Nothing is left behind on failure."""
        _check_id(layer)
        if parent:
            _check_id(parent)
            self._check_not_removed(parent)
            if parent == layer:
                raise DriverError(f"layer {layer} cannot be its own parent")
        size = parse_layer_size(storage_opt)
        self._reaper.postpone()
        if layer in self._removals and not self._reaper.finish(layer, deadline.left(self._options.timeout)):
            raise DriverError(f"layer {layer} is still being removed; try again")
        with self._locks.hold(layer), contextlib.ExitStack() as undo:
            grown = self._make(layer, parent, size, undo)
            undo.callback(self._forget, layer)
            self._states[layer] = OPEN
            if grown:
                self._systems.grow(layer)
            undo.pop_all()

    def remove(self, layer: str) -> None:
        """Remove a layer and all that is mounted of it; one that does not exist is removed already.

        It is gone for Docker at once, and noted on this host as removed; its image goes in the background, as soon as
        no other layer stands on it. Raises LayerBusy.
        """
        _check_id(layer)
        if layer in self._removals:
            return
        with self._locks.hold(layer):
            if layer in self._removals or not self._is_there(layer):
                return
            self._discard(layer)
            self._removals.note(layer)
            self._forget(layer)
        self._reaper.begin(layer)
        self._reaper.postpone()

    def _is_there(self, layer: str) -> bool:
        """Tell whether a layer that is to be removed is there. Raises LayerError if it is another host's."""
        if self._systems.device(layer):
            return True
        try:
            # Whose it was once it still is, or its image stays: that is asked again before it goes.
            with deadline.within(ASK_SECONDS):
                self._layers.check_owner(layer, lease=float("inf"))
        except rbdcli.ImageMissing:
            return False
        except command.CommandError as error:
            log.warning("layer %s is removed once the cluster answers: %s", layer, error)
        return True

    def _discard(self, layer: str) -> None:
        """Unmount a layer that is to be removed, as far as the cluster lets the kernel do it now. Raises LayerBusy."""
        try:
            with deadline.within(DISCARD_SECONDS):
                self._views.discard(layer)
        except (command.CommandTimeout, deadline.Overdue) as error:
            log.warning("layer %s is removed once the kernel has let go of it: %s", layer, error)
        except LayerBusy as error:
            if not self._ahead.hangs(layer):
                raise
            log.warning("layer %s is removed once what reads it has ended: %s", layer, error)

    def exists(self, layer: str) -> bool:
        """Tell whether a layer is there."""
        _check_id(layer)
        return layer not in self._removals and self._layers.exists(layer)

    # -- mount -------------------------------------------------------------------------------

    def get(self, layer: str, label: str) -> str:
        """Mount a layer for Docker and return the path of its root, the same on every call."""
        _check_id(layer)
        self._check_not_removed(layer)
        with self._locks.hold(layer):
            self._acquire(layer, Place.DOCKER, label=label)
            if self._states.get(layer) == FINISHED:
                self._ahead.got(layer)
        return self._views.point(layer, Place.DOCKER)

    def put(self, layer: str) -> None:
        """Undo one `get`; of a layer that is not mounted, nothing (a crash of dockerd ends with such calls)."""
        _check_id(layer)
        if layer in self._removals:
            return
        self._release(layer, Place.DOCKER)

    # -- archives ----------------------------------------------------------------------------

    def apply_diff(self, layer: str, stream: transfer.Readable) -> int:
        """Lay an archive down in a layer and return the sum of its entries' sizes.

        One archive per layer: after a lost answer Docker sends the call again with an empty stream. A
        layer whose archive failed, or was cut off by a crash, is broken for good; only Remove is left.
        """
        _check_id(layer)
        if self._states.get(layer) == FINISHED:
            raise DriverError(f"layer {layer} is finished: it had its archive, or has children; it takes no other")
        with self._view(layer, growing=True) as root:
            directory = self._systems.point(layer)
            said = self._begin(layer, directory)
            room = self._room(layer, directory)
            try:
                size = transfer.apply(root, stream, self._ids, self._options.timeout, room.make)
                layer_state.finish(directory, said, FLUSHES * self._options.timeout)
            except transfer.ArchiveError as error:
                self._states[layer] = BROKEN
                raise room.explained(error) from None
            except BaseException:
                self._states[layer] = BROKEN
                raise
            self._seal(layer)
        return size

    def diff(self, layer: str, parent: str) -> Iterator[bytes]:
        """Yield the archive of what a layer changes in its parent ("" for everything); close it to end early."""
        with self._compared(layer, parent) as (root, below, own):
            yield from transfer.diff(root, below, self._ids, self._options.timeout, own=own)

    def changes(self, layer: str, parent: str) -> list[transfer.Change]:
        """List what a layer changes in its parent."""
        with self._compared(layer, parent) as (root, below, own):
            return transfer.changes(root, below, self._options.timeout, own=own)

    def diff_size(self, layer: str, parent: str) -> int:
        """Return the bytes that a layer adds to its parent."""
        with self._compared(layer, parent) as (root, below, own):
            return transfer.size(root, below, self._options.timeout, own=own)

    # -- what is going on --------------------------------------------------------------------

    def status(self) -> list[tuple[str, str]]:
        """Return the rows of `docker info`. What the cluster does not tell is said in its row, not raised."""
        return status.rows(self._pool, self._options, self._layers.count, lambda: len(self._systems.mapped()))

    def metadata(self, layer: str) -> dict[str, str]:
        """Return what `docker inspect` shows of a layer."""
        _check_id(layer)
        self._check_not_removed(layer)
        size, parents = self._layers.describe(layer).size, self._layers.parents(layer)
        mounted = self._views.is_mounted(layer, Place.DOCKER)
        return {
            "Pool": "/".join(filter(None, (self._pool.name, self._pool.namespace))),
            "Image": self._layers.image(layer),
            "Device": (self._systems.device(layer) or "") if mounted else "",
            "Parent": self._layers.image(parents[0]) if parents else "",
            "Depth": str(len(parents)),
            "Size": str(size),
            "Filesystem": self._options.fs,
            "MountPoint": self._views.point(layer, Place.DOCKER) if mounted else "",
        }

    # -- within ------------------------------------------------------------------------------

    def _make(self, layer: str, parent: str, size: int | None, undo: contextlib.ExitStack) -> bool:
        """Make the image; tell whether the file system in it is to grow."""
        if not parent:
            grown = self._layers.create(layer, None, size)
            undo.callback(self._unmake, layer)
            return grown
        with self._locks.hold(parent):
            self._check_not_removed(parent)
            if self._views.is_writable(parent):
                # Docker makes layers of what it has put.
                self._views.settle_one(parent)
            if self._views.is_writable(parent):
                raise DriverError(f"layer {layer}: its parent {parent} is mounted writable; put it first")
            finished = self._state_of_parent(layer, parent) == FINISHED
            if parent.endswith(INIT_SUFFIX):
                # Its image is copied.
                self._systems.quiesce(parent)
            elif not finished:
                self._finish(parent)
            grown = self._layers.create(layer, parent, size)
            undo.callback(self._unmake, layer)
        for below in self._layers.parents(layer):
            if not self._systems.is_mounted(below):
                # Whatever comes next needs it.
                self._mapping.later(below, 0)
        return grown

    def _unmake(self, layer: str) -> None:
        """Delete the image of a layer that was just made; one that is mapped still goes in the background."""
        if self._systems.device(layer) is None:
            self._layers.undo(layer)
        else:
            self._removals.note(layer)
            self._reaper.begin(layer)

    def _state_of_parent(self, layer: str, parent: str) -> str:
        """Return what is known of a layer that is to get a child. Raises DriverError if it can have none."""
        if self._states.get(parent) == BROKEN:
            raise DriverError(f"layer {layer}: its parent {parent} is broken; remove it")
        try:
            self._check_owner(parent)
            return self._state(parent)
        except rbdcli.ImageMissing:
            raise DriverError(
                f"layer {layer}: its parent {parent} does not exist: no image {self._layers.image(parent)}"
            ) from None
        except rbdcli.ImageLocked as error:
            raise self._unavailable(parent, error) from None

    def _finish(self, parent: str) -> None:
        """A layer that gets its first child is finished."""
        with self._available(parent):
            self._views.open(parent, sealed=False)
        try:
            self._systems.make_writable(parent)
            said = self._views.dressed(parent)
            layer_state.finish(self._systems.point(parent), said, FLUSHES * self._options.timeout)
            self._seal(parent)
        finally:
            self._views.leave(parent, Place.BELOW)
            self._views.unmount_left(parent, Place.BELOW)

    def _warm(self, layer: str) -> bool:
        """Map a layer on which one was just made."""
        with deadline.within(self._options.timeout), self._locks.hold(layer):
            if layer in self._removals:
                return True
            try:
                self._views.warm(layer)
            except (command.CommandError, deadline.Overdue, LayerBusy, LayerLost, OSError) as error:
                # Who needs it is told then.
                log.info("layer %s is not mapped ahead: %s", layer, error)
        return True

    def _leave_mapped(self, layer: str) -> None:
        self._unmapping.later(layer, max(MAPPED_SECONDS, MAPPED_TIMES * self._systems.cost(layer)))

    def _wake(self) -> None:
        """The cluster answers: what failed may be possible now."""
        self._unmapping.wake()
        self._reaper.wake()

    def _check_not_removed(self, layer: str) -> None:
        """Asked before the layer's lock is taken, too: its removal in the background may hold that for a while."""
        if layer in self._removals:
            raise DriverError(f"layer {layer} does not exist: it was removed")

    def _let_go(self, layer: str) -> bool:
        """Unmap what Docker was done with some seconds ago."""
        with deadline.within(self._options.timeout), self._locks.hold(layer):
            self._views.let_go(layer, tidy=layer not in self._removals)
        return True

    def _acquire(self, layer: str, place: Place, *, label: str = "", growing: bool = False) -> Place:
        """Mount a layer, a finished one never writable; the caller holds its lock and releases what is returned."""
        self._check_not_removed(layer)
        with self._available(layer):
            sealed = self._state(layer, growing=growing) == FINISHED
            return self._views.acquire(layer, place, sealed=sealed, label=label, growing=growing and not sealed)

    @contextlib.contextmanager
    def _available(self, layer: str) -> Iterator[None]:
        """Map a layer in the `with` block, if it is ours; say why it cannot be."""
        try:
            self._check_owner(layer)
            yield
        except (rbdcli.ImageMissing, rbdcli.ImageLocked) as error:
            raise self._unavailable(layer, error) from None
        except Exception:
            if self._systems.device(layer):
                # What could not be unmapped again is, later.
                self._leave_mapped(layer)
            raise

    def _check_owner(self, layer: str) -> None:
        """Raise LayerError if a layer is another host's. One that is mapped here cannot be.

        One that is only looked at may have become another's since it was ours: whoever has it, it stays as it is.
        """
        if self._systems.device(layer) is None:
            lease = OWNER_SECONDS if self._liveness.shown else 0.0
            finished = self._states.get(layer) == FINISHED
            self._layers.check_owner(layer, lease=float("inf") if finished else lease)

    def _unavailable(self, layer: str, error: rbdcli.RbdError) -> Exception:
        """Say why a layer cannot be mapped. ENOENT alone does not tell: a kernel without rbd ends with it too."""
        if not self._layers.exists(layer):
            return DriverError(f"layer {layer} does not exist: no image {self._layers.image(layer)}")
        if isinstance(error, rbdcli.ImageLocked):
            return DriverError(f"layer {layer} is in use elsewhere: {self._layers.holder(layer)}: {error}")
        return error

    def _state(self, layer: str, *, growing: bool = False) -> str:
        """Return what is known of a layer; of one from before our start its note tells. Raises DriverError: broken."""
        if layer not in self._states:
            user = f"{layer}/state"
            self._systems.acquire(layer, user, write=False, sealed=False, growing=growing)
            try:
                self._systems.check_alive(layer)
                said = layer_state.read(self._systems.point(layer), self._options.timeout)
            finally:
                if self._systems.release(layer, user):
                    self._leave_mapped(layer)
            if said and said.applying:
                self._states[layer] = BROKEN
            else:
                self._states[layer] = FINISHED if said and said.layer == layer and said.finished else OPEN
            if self._states[layer] == FINISHED:
                self._systems.seal(layer)
        if self._states[layer] == BROKEN:
            raise DriverError(f"layer {layer} is broken: its archive was not applied to its end; remove it")
        return self._states[layer]

    def _room(self, layer: str, point: str) -> Room:
        """Return the room in a layer that is mounted at `point`, which may grow for its archive."""

        def grow(size: int) -> None:
            with self._bounds(), self._locks.hold(layer):
                self._systems.grow_mounted(layer, size, lambda: self._layers.grow(layer, size))

        return Room(point, self._layers.describe(layer).size, grow, self._options.timeout)

    def _begin(self, layer: str, directory: str) -> layer_state.LayerState:
        """Mark that a layer's archive is being applied, unless one was before; return its note."""
        with self._bounds(), self._locks.hold(layer):
            self._check_not_removed(layer)
            said = self._views.dressed(layer)
            if said.applying or said.finished:
                raise DriverError(
                    f"layer {layer} takes one archive; {'it had one' if said.finished else 'one is being applied'}"
                )
            layer_state.begin(directory, self._options.timeout)
            return said

    def _seal(self, layer: str) -> None:
        self._states[layer] = FINISHED
        self._systems.seal(layer)

    def _forget(self, layer: str) -> None:
        self._states.pop(layer, None)

    @contextlib.contextmanager
    def _view(self, layer: str, *, growing: bool = False) -> Iterator[str]:
        """Get and Put of our own: the root directory of a layer for the length of a `with` block."""
        _check_id(layer)
        self._check_not_removed(layer)
        with self._bounds(), self._locks.hold(layer):
            place = self._acquire(layer, Place.DRIVER, growing=growing)
        with self._left(layer, place):
            yield self._views.point(layer, place)

    @contextlib.contextmanager
    def _brought(self, layer: str) -> Iterator[tuple[str, str | None, str]]:
        """What a layer itself brought, what is below it, and its parent, for the length of a `with` block."""
        with self._bounds(), self._locks.hold(layer):
            self._check_not_removed(layer)
            with self._available(layer):
                found = self._views.open(layer, sealed=self._state(layer) == FINISHED)
        with self._left(layer, Place.BELOW):
            yield found

    @contextlib.contextmanager
    def _left(self, layer: str, place: Place) -> Iterator[None]:
        """Release a layer at the end of the `with` block."""
        try:
            yield
        except BaseException:
            try:
                self._leave(layer, place)
            except (command.CommandError, LayerBusy, deadline.Overdue) as error:
                # Why the work ended is worth more to the caller; it is tried again in the background.
                log.error("%s", error)
            raise
        self._leave(layer, place)

    def _leave(self, layer: str, place: Place) -> None:
        with self._bounds():
            self._release(layer, place)

    def _release(self, layer: str, place: Place) -> None:
        self._views.leave(layer, place)
        try:
            with self._locks.hold(layer):
                self._views.unmount_left(layer, place)
        except deadline.Overdue:
            # Others are at work with it; it is nobody's all the same.
            self._leave_mapped(layer)
            raise

    @contextlib.contextmanager
    def _compared(self, layer: str, parent: str) -> Iterator[tuple[str, str | None, bool]]:
        """Two trees to be compared, and whether the first is only what the layer brought, since `parent` is its own."""
        _check_id(layer)
        self._check_not_removed(layer)
        with contextlib.ExitStack() as stack:
            if parent:
                _check_id(parent)
                self._check_not_removed(parent)
            root, below, made_on = stack.enter_context(self._brought(layer))
            if made_on == parent:
                yield root, below, True
                return
            stack.pop_all().close()
            view = stack.enter_context(self._view(layer))
            yield view, stack.enter_context(self._view(parent)) if parent else None, False

    def _make_home(self) -> None:
        for path in (self._home, self._root, self._systems.links):
            mounts.make_directory(path)


def pool_of(options: Options) -> rbdcli.Pool:
    """Return the pool that the options name."""
    return rbdcli.Pool(
        name=options.datapool,
        namespace=options.namespace,
        client=options.client,
        configfile=options.configfile,
        timeout=options.timeout,
        device_type=options.devicetype,
        map_options=options.mapopt,
    )


def _check_id(layer: str) -> None:
    """Raise DriverError unless `layer` is an id: it becomes part of a path and of an image's name."""
    if not _LAYER_ID.fullmatch(layer) or layer == BASE:
        raise DriverError(f"{layer[:80]!r} is not a layer id; expected up to 128 letters, digits, - and _")
