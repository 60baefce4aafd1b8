"""The graph driver: what Docker asks of a layer, from Create to Remove, one method per call.

The contract of each method is moby's `daemon/graphdriver/driver.go`; the odd calls that dockerd really
makes (Remove without Put, Put without Get, Get and Put after a live restore, Init twice) are told where
they are met. Paths, counts and errors are ours; HTTP is not.

Lock order: a layer before its parent. A layer's lock is held while it is made, mapped, mounted,
unmounted or removed, never while an archive runs: Docker feeds the Diff of one layer into the
ApplyDiff of another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping

import archive
import command
import deadline
import diagnosis
import mounts
import note
import objects
import rbdcli
import readiness
import status
from baseimage import BaseImage
from behind import Behind, in_turn
from busy import LayerBusy
from claim import REBOOT_SECONDS
from layers import BASE, INIT_SUFFIX, OBJECT_SIZE, ROOT_DIRECTORY, LayerError, Layers
from locks import Locks
from lookahead import LookAhead
from mounted import LayerLost, MountedLayers, Place
from options import Options, parse_layer_size
from presence import Presence
from reaper import Reaper
from room import Room

log = logging.getLogger("driver")

# 64 hexadecimal digits, with -init for an init layer, 25 digits of base 36 from BuildKit; moby's
# graphtest uses words. Nothing that a path, an option or rbd's image syntax could give a meaning to.
_LAYER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
# All that an archive left in memory is written out at its end: so many times as long as one command may take.
FLUSHES = 5
# dockerd ends by force 15 s after it was told to end (moby cmd/dockerd), and then leaves its data root mounted.
# What is still in the trash then is deleted behind, or at the next start.
CLEANUP_SECONDS = 8.0
# A layer that Docker has put is wanted again within moments or for long not: so long it stays mapped.
MAPPED_SECONDS = 3.0
# A Remove waits so long for a sick cluster to say whose a layer is, or to take what the kernel still writes to it.
ASK_SECONDS, DISCARD_SECONDS = 5.0, 15.0
# While the cluster sees that we live, nobody takes our layers; cut off from it, not for another 30 s (presence.py).
OWNER_SECONDS = 20.0


class DriverError(Exception):
    """A call is refused: one line that says what was wrong, what was expected, and the id."""


class Driver:
    """One Docker daemon's layers."""

    def __init__(self, home: str, options: Options, ids: archive.IdMaps) -> None:
        self._options = options
        self._ids = ids
        self._home = home
        self._root = os.path.join(home, "mnt")
        pool = pool_of(options)
        self._pool = pool
        self._layers = Layers(pool, options, home)
        self._mounted = MountedLayers(pool, self._root, self._layers, options.fs, options.mountopt)
        self._presence = Presence(pool, options.imageprefix, self._layers.owner(), self._wake)
        self._locks = Locks()
        # Layers that are finished and only read from now on; layers made by us and not finished yet;
        # layers whose archive failed. A layer in none of them is from before our start: look at its note.
        self._sealed: set[str] = set()
        self._open: set[str] = set()
        self._broken: set[str] = set()
        # Layers of which a container was copied: the next one shall be a clone.
        self._to_prepare: set[str] = set()
        # What a sick cluster, or an rbd that prints what we do not know, may raise: no reason to give up.
        expected = (command.CommandError, deadline.Overdue, LayerBusy, LayerError, LayerLost, OSError, ValueError)
        self._unmapping = Behind("unmapping layer", self._let_go, expected)
        self._reaper = Reaper(self._layers, self._mounted, self._locks, options.timeout, expected)
        # What was found at the start and nobody needs.
        self._left_over: list[str] = []
        self._ahead = LookAhead(self._layers, self._locks, self._mount_ahead, self._leave_ahead, expected)
        self._background = (self._reaper, self._ahead, self._unmapping)

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
        """Let an error of the `with` block say what is wrong with the cluster, if that may be the cause."""
        try:
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
            self._presence.claim()

    def prepare(self) -> None:
        """Make the base image; needs the claim. It does not disturb a driver that runs.

        Raises LayerError, command.CommandError.
        """
        self._make_home()
        BaseImage(self._layers, self._options, self._home).ensure()
        try:
            objects.prepare_trash(self._pool)
        except command.CommandError as error:
            log.warning("once the pool is full, nothing can be removed from it: %s", error)

    def learn(self) -> None:
        """Learn what an earlier life of this process, or another object, had mounted. Raises command.CommandError."""
        self._make_home()
        self._left_over = self._mounted.learn()

    def settle(self) -> None:
        """A daemon has just started: keep mounted what containers still use.

        Called also without an end of the daemon before it when it crashed or kept its containers (live-restore).
        """
        self._left_over = self._mounted.settle()

    def start(self) -> None:
        """Begin what is done in the background: with what was left from before, and what was in the trash."""
        self._presence.start()
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
        self._mounted.end_readers()

    def resume(self) -> None:
        """Go on after `pause`."""
        for work in self._background:
            work.resume()

    def end(self) -> None:
        """Do nothing any more: another object has taken over, and could tell from the host what this one had mapped."""
        for work in self._background:
            work.end()
        self._presence.stop()

    def check(self) -> None:
        """Raise readiness.NotReady unless what the options name, and the programs for it, are there."""
        readiness.check(self._pool, self._options)

    def cleanup(self) -> None:
        """End as Docker ends: the trash is emptied as far as there is time. Containers' mounts stay."""
        self.finish(CLEANUP_SECONDS)

    def finish(self, timeout: float) -> bool:
        """Unmap what is mapped for nobody, remove what is removed, empty the trash, as far as `timeout` seconds allow.

        Tell whether all of it was tried.
        """
        # Each is asked, also when the one before took all the time: what it can do at once it does.
        return all([*in_turn(timeout, self._ahead.finish, self._unmapping.drain, self._reaper.drain)])

    # -- create and remove -------------------------------------------------------------------

    def create(self, layer: str, parent: str, storage_opt: Mapping[str, str] | None, *, leaf: bool) -> None:
        """Make a layer on `parent` ("" for none); `leaf`: by CreateReadWrite. Nothing is left behind on failure."""
        _check_id(layer)
        if parent:
            _check_id(parent)
            self._check_not_removed(parent)
            if parent == layer:
                raise DriverError(f"layer {layer} cannot be its own parent")
        size = parse_layer_size(storage_opt)
        self._reaper.postpone()
        # The only layer on an init layer is its container's, a copy of it: neither makes the chain longer.
        leaf = leaf or layer.endswith(INIT_SUFFIX)
        if self._mounted.is_removed(layer) and not self._reaper.finish(layer, deadline.left(self._options.timeout)):
            raise DriverError(f"layer {layer} is still being removed; try again")
        with self._locks.hold(layer), contextlib.ExitStack() as undo:
            before = self._make(layer, parent, size, leaf=leaf)
            undo.callback(self._layers.undo, layer)
            self._open.add(layer)
            undo.callback(self._forget, layer)
            grown = before is None or self._layers.describe(layer).size > before
            if grown:
                self._mounted.grow(layer)
            if not parent and self._ids.uids:
                self._give_root(layer)
            undo.pop_all()

    def remove(self, layer: str) -> None:
        """Remove a layer and all that is mounted of it; one that does not exist is removed already.

        It is gone for Docker at once, and noted on this host as removed; its image goes behind. Raises LayerBusy.
        """
        _check_id(layer)
        if self._mounted.is_removed(layer):
            return
        with self._locks.hold(layer):
            if self._mounted.is_removed(layer) or not self._is_there(layer):
                return
            self._discard(layer)
            self._mounted.note_removed(layer)
            self._forget(layer)
        self._reaper.begin(layer)
        self._reaper.postpone()

    def _is_there(self, layer: str) -> bool:
        """Tell whether a layer that is to be removed is there. Raises LayerError if it is another host's."""
        if self._mounted.device(layer):
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
                self._ahead.leave(layer)
                self._mounted.discard(layer)
        except (command.CommandTimeout, deadline.Overdue) as error:
            log.warning("layer %s is removed once the kernel has let go of it: %s", layer, error)

    def exists(self, layer: str) -> bool:
        """Tell whether a layer is there."""
        _check_id(layer)
        return not self._mounted.is_removed(layer) and self._layers.exists(layer)

    # -- mount -------------------------------------------------------------------------------

    def get(self, layer: str, label: str) -> str:
        """Mount a layer for Docker and return the path of its root, the same on every call."""
        _check_id(layer)
        self._check_not_removed(layer)
        with self._locks.hold(layer):
            if label:
                # What is mounted ahead has none.
                self._ahead.leave(layer)
            self._acquire(layer, Place.DOCKER, write=True, label=label)
            if layer in self._sealed:
                self._read_ahead(layer)
                self._ahead.got(layer)
        return os.path.join(self._mounted.point(layer, Place.DOCKER), ROOT_DIRECTORY)

    def put(self, layer: str) -> None:
        """Undo one `get`; of a layer that is not mounted, nothing (a crash of dockerd ends with such calls)."""
        _check_id(layer)
        if self._mounted.is_removed(layer):
            return
        with self._locks.hold(layer):
            self._release(layer, Place.DOCKER)
            self._ahead.leave(layer)

    # -- archives ----------------------------------------------------------------------------

    def apply_diff(self, layer: str, stream: archive.Readable) -> int:
        """Lay an archive down in a layer and return the sum of its entries' sizes.

        One archive per layer: after a lost answer Docker sends the call again with an empty stream. A
        layer whose archive failed, or was cut off by a crash, is broken for good; only Remove is left.
        """
        _check_id(layer)
        if layer in self._sealed:
            raise DriverError(f"layer {layer} is finished: it had its archive, or has children; it takes no other")
        with self._mounted_root(layer, write=True, growing=True) as root:
            directory = os.path.dirname(root)
            before = self._begin(layer, directory)
            room = self._room(layer, directory)
            try:
                size = archive.apply(root, stream, self._ids, self._options.timeout, room.make)
                note.finish(directory, layer, before, frozenset(), FLUSHES * self._options.timeout)
            except archive.ArchiveError as error:
                self._broken.add(layer)
                raise room.explained(error) from None
            except BaseException:
                self._broken.add(layer)
                raise
            self._seal(layer)
        if self._layers.is_large(layer, self._mounted.written(layer)):
            # The next layer, or the first container, will be a clone: what that needs begins while Docker writes down
            # that this one is finished.
            self._to_prepare.add(layer)
            self._unmapping.later(layer, 0, 0)
        return size

    def diff(self, layer: str, parent: str) -> Iterator[bytes]:
        """Yield the archive of what a layer changes in its parent ("" for everything); close it to end early."""
        with self._two_roots(layer, parent) as (root, below):
            yield from archive.diff(root, below, self._ids, self._options.timeout)

    def changes(self, layer: str, parent: str) -> list[archive.Change]:
        """List what a layer changes in its parent."""
        with self._two_roots(layer, parent) as (root, below):
            return archive.changes(root, below, self._options.timeout)

    def diff_size(self, layer: str, parent: str) -> int:
        """Return the bytes that a layer adds to its parent."""
        with self._two_roots(layer, parent) as (root, below):
            return archive.size(root, below, self._options.timeout)

    # -- what is going on --------------------------------------------------------------------

    def status(self) -> list[tuple[str, str]]:
        """Return the rows of `docker info`. What the cluster does not tell is said in its row, not raised."""
        return status.rows(self._pool, self._options, self._layers.count, self._mounted.count)

    def metadata(self, layer: str) -> dict[str, str]:
        """Return the rows of `docker inspect`'s GraphDriver.Data."""
        _check_id(layer)
        self._check_not_removed(layer)
        known = self._layers.describe(layer)
        mounted = self._mounted.is_mounted(layer, Place.DOCKER)
        return {
            "Pool": "/".join(filter(None, (self._pool.name, self._pool.namespace))),
            "Image": self._layers.image(layer),
            "Device": (self._mounted.device(layer) or "") if mounted else "",
            "Parent": f"{known.parent.image}@{known.parent.snapshot}" if known.parent else "",
            "Depth": str(known.depth),
            "Size": str(known.size),
            "Filesystem": self._options.fs,
            "MountPoint": self._mounted.point(layer, Place.DOCKER) if mounted else "",
        }

    # -- within ------------------------------------------------------------------------------

    def _make(self, layer: str, parent: str, size: int | None, *, leaf: bool) -> int | None:
        """Make the image; return the size of the file system that it got from its parent, None if that is unknown."""
        if not parent:
            self._layers.create(layer, None, size, leaf=leaf)
            return self._layers.describe(BASE).size
        with self._locks.hold(parent):
            self._check_not_removed(parent)
            if parent in self._broken:
                raise DriverError(f"layer {layer}: its parent {parent} is broken; remove it")
            if self._mounted.is_writable(parent):
                # Docker makes layers of what it has put.
                self._mounted.settle_guessed(parent)
            if self._mounted.is_writable(parent):
                raise DriverError(f"layer {layer}: its parent {parent} is mounted writable; put it first")

            def let_go() -> bool:
                self._mounted.let_go(parent)
                return self._mounted.device(parent) is not None

            # Nor is what the mount stored to be copied, or kept in a snapshot.
            self._mounted.tidy(parent, OBJECT_SIZE)
            written = self._mounted.written(parent)
            self._layers.create(layer, parent, size, leaf=leaf, written=written, let_go=let_go)
            if not parent.endswith(INIT_SUFFIX):
                self._seal(parent)
                if leaf and not self._layers.is_prepared(parent):
                    self._to_prepare.add(parent)
                    self._unmapping.later(parent, MAPPED_SECONDS)
            return self._layers.describe(parent).size

    def _give_root(self, layer: str) -> None:
        """Let the root of a parentless layer belong to the container's root."""
        place = self._acquire(layer, Place.DRIVER, write=True, growing=True)
        try:
            root = os.path.join(self._mounted.point(layer, place), ROOT_DIRECTORY)
            owner = self._ids.uids[0].host_id, self._ids.gids[0].host_id
            deadline.call(lambda: os.chown(root, *owner), root, self._options.timeout)
        finally:
            self._release(layer, place)

    def _read_ahead(self, layer: str) -> None:
        """Docker gets a finished layer to save or push it: it will read the layer's own files, one after the other."""
        try:
            self._read_own(layer, Place.DOCKER)
        except (command.CommandError, deadline.Overdue, OSError) as error:
            # The layer is mounted and counted: without reading ahead it is as good, only slower.
            log.warning("layer %s is not read ahead: %s", layer, error)

    def _mount_ahead(self, layer: str) -> bool:
        """Mount a layer before Docker gets it, and read it ahead, if it is finished and nobody has it mapped."""
        if self._mounted.device(layer) or self._mounted.is_removed(layer) or layer in self._open | self._broken:
            return False
        self._check_owner(layer)
        with contextlib.ExitStack() as undo:
            # Also one from before our start, which may turn out to be none: that is told without writing to it.
            place = self._mounted.acquire(layer, Place.DRIVER, write=False, sealed=True)
            undo.callback(self._release, layer, place)
            if not self._read_own(layer, place):
                return False
            self._seal(layer)
            undo.pop_all()
        return True

    def _read_own(self, layer: str, place: Place) -> bool:
        """Read the own files of a mounted layer ahead; tell whether its note knows which these are."""
        own = note.own(self._mounted.point(layer, place), layer, self._options.timeout)
        if own is not None:
            self._mounted.read_ahead(layer, place, own.began, own.chunks)
        return own is not None

    def _leave_ahead(self, layer: str) -> None:
        self._release(layer, Place.DRIVER)

    def _release(self, layer: str, place: Place) -> None:
        """Undo an acquire; the caller holds the layer's lock."""
        if self._mounted.release(layer, place):
            self._unmapping.later(layer, MAPPED_SECONDS)

    def _wake(self) -> None:
        """The cluster answers: what failed may be possible now."""
        self._unmapping.wake()
        self._reaper.wake()

    def _check_not_removed(self, layer: str) -> None:
        """Asked before the layer's lock is taken, too: its removal in the background may hold that for a while."""
        if self._mounted.is_removed(layer):
            raise DriverError(f"layer {layer} does not exist: it was removed")

    def _let_go(self, layer: str) -> bool:
        """Unmap what Docker was done with some seconds ago; take the snapshot of what containers start from."""
        with deadline.within(self._options.timeout), self._locks.hold(layer):
            if not self._mounted.is_removed(layer):
                self._mounted.tidy(layer, OBJECT_SIZE)
            self._mounted.let_go(layer)
            if layer in self._to_prepare and self._mounted.device(layer) is None:
                with contextlib.suppress(LayerError, rbdcli.ImageMissing):
                    # One that has gone has no next child.
                    self._layers.prepare(layer)
                self._to_prepare.discard(layer)
        return True

    def _acquire(self, layer: str, place: Place, *, write: bool, label: str = "", growing: bool = False) -> Place:
        """Mount a layer, a sealed one never writable; the caller holds its lock and releases what is returned."""
        self._check_not_removed(layer)
        try:
            self._check_owner(layer)
            with contextlib.ExitStack() as after:
                if not {layer} & (self._open | self._sealed | self._broken):
                    self._learn(layer, after, label, growing=growing)
                if layer in self._broken:
                    raise DriverError(f"layer {layer} is broken: its archive was not applied to its end; remove it")
                sealed = layer in self._sealed
                write = write and not sealed
                return self._mounted.acquire(
                    layer, place, write=write, sealed=sealed, label=label, growing=growing and write
                )
        except (rbdcli.ImageMissing, rbdcli.ImageLocked) as error:
            raise self._unavailable(layer, error) from None
        except Exception:
            if self._mounted.device(layer):
                # What could not be unmapped again is, later.
                self._unmapping.later(layer, MAPPED_SECONDS)
            raise

    def _check_owner(self, layer: str) -> None:
        """Raise LayerError if a layer is another host's. One that is mapped here cannot be.

        One that is only looked at may have become another's since it was ours: whoever has it, it stays as it is.
        """
        if self._mounted.device(layer) is None:
            lease = OWNER_SECONDS if self._presence.shown else 0.0
            self._layers.check_owner(layer, lease=float("inf") if layer in self._sealed else lease)

    def _unavailable(self, layer: str, error: rbdcli.RbdError) -> Exception:
        """Say why a layer cannot be mapped. ENOENT alone does not tell: a kernel without rbd ends with it too."""
        if not self._layers.exists(layer):
            return DriverError(f"layer {layer} does not exist: no image {self._layers.image(layer)}")
        if isinstance(error, rbdcli.ImageLocked):
            return DriverError(f"layer {layer} is in use elsewhere: {self._layers.holder(layer)}: {error}")
        return error

    def _learn(self, layer: str, after: contextlib.ExitStack, label: str, *, growing: bool) -> None:
        """Find out what a layer from before our start is, by the note in it; it stays mounted until `after` ends."""
        place = self._mounted.acquire(layer, Place.DRIVER, write=False, sealed=False, label=label, growing=growing)
        after.callback(self._release, layer, place)
        state = note.read(self._mounted.point(layer, place), layer, self._options.timeout)
        {"": self._open, note.APPLIED: self._sealed, note.APPLYING: self._broken}[state].add(layer)

    def _room(self, layer: str, point: str) -> Room:
        """Return the room in a layer that is mounted at `point`, which may grow for its archive."""
        place = Place(os.path.basename(point))

        def grow(size: int) -> None:
            with self._bounds(), self._locks.hold(layer):
                self._mounted.grow_mounted(layer, place, size, lambda: self._layers.grow(layer, size))

        return Room(point, self._layers.describe(layer).size, grow, self._options.timeout)

    def _begin(self, layer: str, directory: str) -> Mapping[int, int] | None:
        """Note that a layer's archive is being applied, unless one was before; return what note.finish asks for."""
        with self._bounds(), self._locks.hold(layer):
            state = note.read(directory, layer, self._options.timeout)
            if state:
                raise DriverError(f"layer {layer} takes one archive; one is {state} already")
            return note.begin(directory, layer, self._options.timeout)

    def _seal(self, layer: str) -> None:
        """A layer is finished. It is known as one or the other at any time: some ask without its lock."""
        self._sealed.add(layer)
        self._open.discard(layer)

    def _forget(self, layer: str) -> None:
        for known in (self._open, self._sealed, self._broken, self._to_prepare):
            known.discard(layer)

    @contextlib.contextmanager
    def _mounted_root(self, layer: str, *, write: bool = False, growing: bool = False) -> Iterator[str]:
        """Get and Put of our own: the root directory of a layer for the length of a `with` block."""
        _check_id(layer)
        self._check_not_removed(layer)
        with self._bounds(), self._locks.hold(layer):
            place = self._acquire(layer, Place.DRIVER, write=write, growing=growing)
        try:
            yield os.path.join(self._mounted.point(layer, place), ROOT_DIRECTORY)
        except BaseException:
            try:
                self._leave(layer, place)
            except (command.CommandError, LayerBusy, deadline.Overdue) as error:
                # Why the work ended is worth more to the caller; the next who needs the layer tries again.
                log.error("%s", error)
            raise
        self._leave(layer, place)

    def _leave(self, layer: str, place: Place) -> None:
        with self._bounds(), self._locks.hold(layer):
            self._release(layer, place)

    @contextlib.contextmanager
    def _two_roots(self, layer: str, parent: str) -> Iterator[tuple[str, str | None]]:
        with contextlib.ExitStack() as stack:
            root = stack.enter_context(self._mounted_root(layer))
            yield root, stack.enter_context(self._mounted_root(parent)) if parent else None

    def _make_home(self) -> None:
        for path in (self._home, self._root):
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
