"""The layers' own file systems on this host: each is mapped and mounted once, for all of its users.

A user has a name: the layer that stands on this one, and what for. A finished layer is mounted read-only and shared. A
layer without users stays mounted until `unmap_unused`, since most layers are wanted again soon. When the last user of a
layer that is not finished leaves, all that was written to it is in the cluster.

Users are counted in memory only. The caller holds the layer's lock around each call, but for `uncount`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence

import mounts
from host import command, deadline
from host.failure import Failure
from images import layer_state
from images.layers import OBJECT_SIZE
from mapped import unmounting
from mapped.devices import Devices, MappedLayer
from mapped.home import Home

log = logging.getLogger("file_systems")

# So many devices are asked at the same time whether they live. Each answer takes as long as the cluster does.
PROBES_AT_ONCE = 8


class LayerLost(Failure):
    """A layer cannot be used any more: its device, or a layer below it, has gone. The text is one line: what to do."""


class FileSystems:
    """The mounted layers of one home. It decides how each is mounted, and who uses it."""

    def __init__(self, home: Home, devices: Devices) -> None:
        self._paths, self._devices, self._daemon, self._timeout = home.paths, devices, home.daemon, home.timeout
        self._layers, self._clients_mount = home.layers, home.clients_mount
        self._fs, self._options = home.options.fs, home.options.fs_options
        self._counting = threading.Lock()

    def is_mounted(self, layer: str) -> bool:
        """Tell whether a layer's file system is mounted."""
        entry = self._devices.get(layer)
        return entry is not None and entry.mounted

    def is_known(self, layer: str) -> bool:
        """Tell whether a layer is mapped."""
        return self._devices.get(layer) is not None

    def usage(self, layer: str, *, flushed: bool = False) -> tuple[int, int]:
        """Return the bytes and the inodes that are used in a mounted layer, with what is its file system's own.

        This asks the kernel, and not the device. `flushed`: what was written is written out before; until then a file
        system holds more space than it takes in the end. Raises OSError, deadline.Overdue.
        """
        point = self._paths.point(layer)

        def ask() -> os.statvfs_result:
            if flushed:
                layer_state.flush(point)
            return os.statvfs(point)

        found = deadline.call(ask, point, self._timeout)
        return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree

    def is_mapped_writable(self, layer: str) -> bool:
        """Tell whether a layer is mapped writable. Only then it may have a writable view."""
        entry = self._devices.get(layer)
        return entry is not None and not entry.read_only

    def cost(self, layer: str) -> float:
        """Return how many seconds the map of a layer took; 0 if that is not known."""
        entry = self._devices.get(layer)
        return entry.cost if entry else 0.0

    def users(self, layer: str) -> set[str]:
        """Name the users of a layer."""
        entry = self._devices.get(layer)
        return set(entry.users) if entry else set()

    # -- acquire and release -----------------------------------------------------------------

    def acquire(self, layer: str, user: str, *, write: bool, finished: bool, growing: bool = False) -> None:
        """Map and mount a layer, and count one use of it more. The caller looks whether its device lives (check_alive).

        `write`: this user writes. `finished`: the layer is finished, and is mounted read-only. `growing`: the layer is
        not mapped exclusively, unless it has users already. On failure nothing more is mounted than before. Raises what
        Devices.map raises, mounts.MountError, deadline.Overdue.
        """
        with contextlib.ExitStack() as undo:
            entry = self._devices.get(layer)
            if entry is not None:
                self._look_again(layer, entry)
                entry = self._without_dead(layer, entry)
            if entry is not None and growing and entry.exclusive and not entry.users:
                self.unmap_unused(layer)
                entry = None
            if entry is None or not entry.mounted:
                entry = self._mount_first(layer, entry, undo, write=write, finished=finished, exclusive=not growing)
            entry.finished = entry.finished or finished
            if write and not entry.writable:
                self._remount(layer, entry, read_only=False)
            elif finished and entry.writable and not entry.writers:
                # Hence the look at the writers: the kernel would do it under a writable view, too, without an error.
                self._remount(layer, entry, read_only=True)
            self._count(entry, user, write=write)
            undo.pop_all()

    def release(self, layer: str, user: str, *, flush: bool = True) -> bool:
        """Count one use of a layer less. Tell whether it is mapped and has no user now.

        If so, what was written to it is in the cluster, unless `flush` is false: nobody wants it any more. The use is
        counted out even on failure. Raises deadline.Overdue if the cluster has not taken all yet; LayerBusy,
        command.CommandTimeout, OSError.
        """
        entry = self._devices.get(layer)
        if entry is None:
            return False
        self._uncount(entry, user)
        if entry.users:
            return False
        self._look_again(layer, entry)
        if flush and entry.mounted and entry.writable and not entry.finished:
            # It stays mounted: an unmount takes longer, and dockerd gets each container twice to start it.
            try:
                self._flush(layer, entry)
            except OSError as error:
                log.error("layer %s is unmounted: its device %s takes nothing: %s", layer, entry.device, error)
                self._unmount(layer, entry)
        return True

    def uncount(self, layer: str, user: str) -> None:
        """Count one use of a finished layer less. The caller need not hold the layer's lock."""
        entry = self._devices.get(layer)
        if entry is not None:
            self._uncount(entry, user)

    def _count(self, entry: MappedLayer, user: str, *, write: bool) -> None:
        with self._counting:
            entry.users[user] += 1
            if write:
                entry.writers.add(user)

    def _uncount(self, entry: MappedLayer, user: str) -> None:
        with self._counting:
            entry.users -= Counter((user,))
            if user not in entry.users:
                entry.writers.discard(user)

    def _flush(self, layer: str, entry: MappedLayer) -> None:
        point = self._paths.point(layer)

        def work() -> None:
            try:
                layer_state.flush(point)
            finally:
                entry.flushing = False

        entry.flushing = True
        deadline.call(work, point, self._timeout)

    def set_finished(self, layer: str) -> None:
        """Remember that a layer is finished. It becomes read-only at its next `acquire`."""
        entry = self._devices.get(layer)
        if entry is not None:
            entry.finished = True

    def settle(self, layer: str) -> None:
        """Make a mounted finished layer whole on its device: XFS mounts none read-only whose log is not empty.

        Nobody writes to it any more. The caller holds its lock. Raises command.CommandError.
        """
        entry = self._devices.get(layer)
        if entry is not None and entry.mounted and not entry.writers:
            entry.finished = True
            if entry.writable:
                self._remount(layer, entry, read_only=True)

    def make_writable(self, layer: str) -> None:
        """Make the mount of a mounted layer that is not finished writable. Raises command.CommandError."""
        entry = self._record(layer)
        if not entry.writable:
            self._remount(layer, entry, read_only=False)

    def check_alive(self, layer: str, *others: str, ask: bool = False, user: str = "") -> None:
        """Raise LayerLost if the device of a mounted layer is gone, or that of one of the `others`, which it needs.

        If a file system was written to, it is shut down then. If it is only read, it goes on as far as it is in memory:
        then only `ask` finds out, which asks each device. `user` is about to use the layer: the error does not name it
        among those to be stopped. Raises deadline.Overdue.
        """
        entries = [(each, entry) for each in (layer, *others) if (entry := self._devices.get(each)) and entry.mounted]

        def look(some: list[tuple[str, MappedLayer]]) -> tuple[str, OSError] | None:
            for each, entry in some:
                try:
                    os.stat(self._paths.point(each))
                    if ask:
                        mounts.probe(entry.device)
                except OSError as error:
                    return each, error
            return None

        groups = [entries[at::PROBES_AT_ONCE] for at in range(PROBES_AT_ONCE)] if ask else [entries]
        looks = [functools.partial(look, group) for group in groups if group]
        dead = next(filter(None, deadline.call_all(looks, self._paths.point(layer), self._timeout)), None)
        if dead:
            lost, error = dead
            users = {each.partition("/")[0] for each in self.users(lost).difference((user,))}
            raise LayerLost(
                f"layer {lost}: its device {self._devices.device(lost)} is gone ({error.strerror}); stop what uses it "
                f"({', '.join(sorted(users)) or 'nothing now'}): the next start maps it anew"
            )

    # -- the end -----------------------------------------------------------------------------

    def unmount(self, layer: str) -> None:
        """Unmount a layer that has no user. It stays mapped.

        Raises LayerBusy, command.CommandTimeout, OSError; deadline.Overdue if it is still being written out.
        """
        entry = self._devices.get(layer)
        if entry is not None and not entry.users:
            self._look_again(layer, entry)
            if entry.mounted:
                self._unmount(layer, entry)

    def unmap_unused(self, layer: str, *, tidy: bool = True) -> None:
        """Unmount and unmap a layer that has no user. Raises what `unmount` and Devices.unmap raise."""
        entry = self._devices.get(layer)
        if entry is not None:
            if entry.users:
                return
            self.unmount(layer)
            if tidy:
                self.tidy(layer)
            self._devices.unmap(layer)
        self._devices.unmap_unfinished(layer)

    def quiesce(self, layer: str) -> None:
        """Unmount a layer whose image is about to be copied, and tidy up. It stays mapped.

        Raises LayerBusy if it has users, or somebody else has it mounted; and what `unmount` raises.
        """
        self.unmount(layer)
        entry = self._devices.get(layer)
        if entry and (entry.mounted or unmounting.stays_in_use(entry.device)):
            raise self._devices.busy(layer, entry)
        self.tidy(layer)

    def tidy(self, layer: str) -> None:
        """Give back the space that an XFS log took at the last mount, if a layer is mapped and not mounted any more."""
        entry = self._devices.get(layer)
        if self._fs != "xfs" or not entry or entry.mounted or entry.read_only or entry.tidy:
            return
        entry.tidy = True
        try:
            mounts.give_back_log(entry.device, OBJECT_SIZE, timeout=self._timeout)
        except (OSError, ValueError, deadline.Overdue) as error:
            log.warning("layer %s keeps 2 MiB that it does not need: %s", layer, error)

    # -- growing -----------------------------------------------------------------------------

    def grow(self, layer: str) -> None:
        """Let the file system of a layer fill its image. The layer is not mapped, before and afterwards.

        Raises what `acquire` raises.
        """
        with contextlib.ExitStack() as undo:
            entry = self._devices.map(layer, undo, read_only=False)
            if self._fs == "ext4":
                mounts.grow_ext4(entry.device, timeout=self._timeout)
                return
            self._mount(layer, entry, write=True)
            undo.callback(self._unmount, layer, entry)
            mounts.grow_mounted(self._fs, entry.device, self._paths.point(layer), timeout=self._timeout)

    def grow_mounted(self, layer: str, size: int) -> None:
        """Let a mounted layer and its image have `size` bytes. It was acquired as `growing`.

        On failure the image may be larger than the file system. Raises mounts.MountError, command.CommandError,
        LayerError, OSError.
        """
        mounts.check_growing(self._fs)
        self._layers.grow(layer, size)
        device = self._record(layer).device
        mounts.await_size(device, size, self._timeout)
        mounts.grow_mounted(self._fs, device, self._paths.point(layer), timeout=self._timeout)

    # -- from before -------------------------------------------------------------------------

    def learn(self, layer: str, mounted: mounts.Mount | None, devices: Sequence[str]) -> None:
        """Learn how an earlier life of this process had mapped and mounted a layer. It has no user now.

        `devices` are all devices of its image. Raises OSError, command.CommandError, deadline.Overdue; LayerBusy if its
        device is gone, and its mount point cannot be unmounted.
        """
        entry = None
        if mounted is not None:
            entry = self._found(layer, mounted)
        elif devices:
            entry = MappedLayer(devices[0], mounts.is_read_only(devices[0]))
            log.info("layer %s is mapped as %s from before, for nobody now", layer, devices[0])
        # First of all it is known: whatever fails now, it is unmapped later.
        self._devices.learn(layer, entry, devices)
        if entry is not None and not entry.mounted:
            mounts.remove_point(self._paths.point(layer))

    def adopt(self, layer: str, user: str, *, write: bool) -> None:
        """Count a use of a layer from before. Mount the layer if our mount of it is gone.

        `write` tells whether the mount that somebody still has is writable; the kernel allows us no other way. Raises
        command.CommandError, LayerBusy, mounts.MountError, OSError.
        """
        entry = self._devices.get(layer)
        if entry is None:
            return
        if not entry.mounted:
            self._mount(layer, entry, write=write)
        self._count(entry, user, write=write)

    def _found(self, layer: str, mounted: mounts.Mount) -> MappedLayer | None:
        try:
            device = mounts.device_path(mounted.device_number)
            return MappedLayer(device, mounts.is_read_only(device), mounted=True, writable=not mounted.read_only)
        except (mounts.MountError, OSError) as error:
            log.error("unmounting layer %s: %s", layer, error)
            unmounting.unmount(mounted.point, self._timeout)
            return None

    # -- one step each -----------------------------------------------------------------------

    def _record(self, layer: str) -> MappedLayer:
        entry = self._devices.get(layer)
        assert entry is not None, f"layer {layer} is not mapped"
        return entry

    def _without_dead(self, layer: str, entry: MappedLayer) -> MappedLayer | None:
        """Unmap a layer whose device has gone while it had no users, and return None: it is mapped anew then."""
        if entry.users or not entry.mounted:
            return entry
        try:
            self.check_alive(layer, ask=True)
        except LayerLost as error:
            log.warning("%s", error)
            self._unmount(layer, entry)
            self._devices.unmap(layer)
            return None
        return entry

    def _mount_first(
        self,
        layer: str,
        idle: MappedLayer | None,
        undo: contextlib.ExitStack,
        *,
        write: bool,
        finished: bool,
        exclusive: bool,
    ) -> MappedLayer:
        """Mount a layer that we have not mounted. `idle` is its mapping, if it has one, and is used if it suits."""
        alone = finished or self._clients_mount
        if idle and not alone and unmounting.stays_in_use(idle.device, unmounting.LIVE_SECONDS):
            # A container may have a view of it. A second view on the same directories would spoil both.
            raise self._devices.busy(layer, idle)
        if idle and (finished or (not idle.read_only and idle.exclusive == exclusive)):
            try:
                self._mount(layer, idle, write=write)
                return idle
            except command.CommandTimeout:
                raise
            except command.CommandError as error:
                # Its device may have gone meanwhile (rbd-nbd killed). A new device shows whether that was the cause.
                log.warning("mapping layer %s anew: %s", layer, error)
        if idle:
            self._devices.unmap(layer)
        if finished:
            with contextlib.ExitStack() as mine:
                entry = self._devices.map(layer, mine, read_only=True)
                if self._mount_clean(layer, entry):
                    undo.push(mine.pop_all())
                    undo.callback(self._unmount, layer, entry)
                    return entry
        entry = self._devices.map(layer, undo, read_only=False, exclusive=exclusive)
        self._mount(layer, entry, write=write)
        undo.callback(self._unmount, layer, entry)
        return entry

    def _mount_clean(self, layer: str, entry: MappedLayer) -> bool:
        """Mount a finished layer whose device takes no writes. Tell whether that could be done.

        After a power cut between the end of its archive and its unmount, it cannot: its log must be replayed first.
        """
        try:
            self._mount(layer, entry, write=False)
        except command.CommandTimeout:
            raise
        except command.CommandError as error:
            log.warning("layer %s is mapped writable, to be mended: %s", layer, error)
            return False
        return True

    def _look_again(self, layer: str, entry: MappedLayer) -> None:
        """After a timeout, learn from the mount table what was done. A mount that was made too late is ended."""
        if not entry.doubtful:
            return
        mounted = mounts.at(self._paths.point(layer))
        if mounted and not entry.mounted:
            unmounting.unmount(self._paths.point(layer), self._timeout)
        elif mounted:
            entry.writable = not mounted.read_only
        elif entry.mounted:
            self._not_mounted(layer, entry)
        entry.doubtful = False

    def _mount(self, layer: str, entry: MappedLayer, *, write: bool) -> None:
        self._daemon.refuse_if_ended(layer)
        point, timeout = self._paths.point(layer), self._timeout
        mounts.make_directory(point)
        self._paths.link(layer)
        with unmounting.doubting(entry):
            mounts.mount(self._fs, entry.device, point, self._options, read_only=not write, timeout=timeout)
        mounts.limit_retries(self._fs, entry.device, timeout)
        entry.mounted, entry.writable, entry.ending = True, write, False
        entry.tidy = entry.tidy and not write

    def _remount(self, layer: str, entry: MappedLayer, *, read_only: bool) -> None:
        with unmounting.doubting(entry):
            unmounting.remount(self._paths.point(layer), read_only=read_only, timeout=self._timeout)
        entry.writable = not read_only
        entry.tidy = entry.tidy and read_only

    def _unmount(self, layer: str, entry: MappedLayer) -> None:
        if entry.flushing:
            # Our own thread (_flush) has it open, and hangs in the kernel.
            raise deadline.Overdue(f"layer {layer}: the cluster has not taken yet what was written to it")
        try:
            unmounting.unmount(self._paths.point(layer), self._timeout)
        except command.CommandTimeout:
            entry.doubtful = entry.ending = True
            raise
        self._not_mounted(layer, entry)

    def _not_mounted(self, layer: str, entry: MappedLayer) -> None:
        entry.mounted = entry.writable = False
        mounts.remove_point(self._paths.point(layer))
