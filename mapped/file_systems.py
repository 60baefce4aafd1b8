"""The layers' own file systems on this host: each mapped and mounted once, for all who need it.

A user of a layer has a name: the layer that stands on it, and what for. A finished layer is mounted read-only, and
shared; one that nobody uses any more stays until `unmap_unused`, since most are wanted again soon. What was written to
a layer that is not finished is in the cluster when its last user leaves it.

What is known of users is in memory only. The caller holds the layer's lock around each call, but for `uncount`.
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

# Devices that are asked at the same time whether they live: each takes as long as the cluster does.
PROBES_AT_ONCE = 8


class LayerLost(Failure):
    """The device of a mounted layer went away under it: one line that says what to do."""


class FileSystems:
    """The mounted layers of one home."""

    def __init__(self, home: Home, devices: Devices) -> None:
        self._paths, self._devices, self._daemon, self._timeout = home.paths, devices, home.daemon, home.timeout
        self._layers = home.layers
        self._fs, self._options = home.options.fs, home.options.fs_options
        self._counting = threading.Lock()

    def is_mounted(self, layer: str) -> bool:
        """Tell whether a layer's file system is mounted."""
        entry = self._devices.get(layer)
        return entry is not None and entry.mounted

    def is_mapped_writable(self, layer: str) -> bool:
        """Tell whether a layer is mapped writable: it may have a writable view."""
        entry = self._devices.get(layer)
        return entry is not None and not entry.read_only

    def cost(self, layer: str) -> float:
        """Return the seconds that it took to map a layer; 0 if that is not known."""
        entry = self._devices.get(layer)
        return entry.cost if entry else 0.0

    def users(self, layer: str) -> set[str]:
        """Name the users of a layer."""
        entry = self._devices.get(layer)
        return set(entry.users) if entry else set()

    # -- acquire and release -----------------------------------------------------------------

    def acquire(self, layer: str, user: str, *, write: bool, finished: bool, growing: bool = False) -> None:
        """Map and mount a layer for one more use; whether it lives is for the caller to see, who may need several.

        `finished`: it is finished, and mounted read-only. One that is to be `growing` is not mapped exclusively, unless
        somebody has it already. On failure nothing stays behind. Raises rbdcli.ImageMissing, rbdcli.ImageLocked,
        command.CommandError, LayerBusy.
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
                # The kernel would do it under a view that is written to, too, and without a word.
                self._remount(layer, entry, read_only=True)
            self._count(entry, user, write=write)
            undo.pop_all()

    def release(self, layer: str, user: str, *, flush: bool = True) -> bool:
        """Count one use of a layer less; tell whether it is mapped for nobody now.

        What was written to it is in the cluster then, unless nobody wants that, and so `flush` is false. Raises
        deadline.Overdue: it may not be there yet.
        """
        entry = self._devices.get(layer)
        if entry is None:
            return False
        self._uncount(entry, user)
        if entry.users:
            return False
        self._look_again(layer, entry)
        if flush and entry.mounted and entry.writable and not entry.finished:
            # To unmount it takes longer, and it may be wanted again: dockerd gets each container twice to start it.
            try:
                self._flush(layer, entry)
            except OSError as error:
                log.error("layer %s is unmounted: its device %s takes nothing: %s", layer, entry.device, error)
                self._unmount(layer, entry)
        return True

    def uncount(self, layer: str, user: str) -> None:
        """Count one use of a finished layer less, whoever is at work with it: without its lock."""
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
        """Note that a layer is finished; it becomes read-only when it is used next."""
        entry = self._devices.get(layer)
        if entry is not None:
            entry.finished = True

    def make_writable(self, layer: str) -> None:
        """Let a mounted layer that is not finished be written to. Raises command.CommandError."""
        entry = self._record(layer)
        if not entry.writable:
            self._remount(layer, entry, read_only=False)

    def check_alive(self, layer: str, *others: str, ask: bool = False, user: str = "") -> None:
        """Raise LayerLost if the device of a mounted layer, or of one of the others, which it needs, went away.

        A file system that was written to is shut down then. One that is only read goes on as far as it is in memory:
        to find out takes `ask`, which asks each device. `user`: who does not use it yet, and need not be stopped.
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
        """Unmount a layer that nobody uses; it stays mapped. Raises LayerBusy, command.CommandError."""
        entry = self._devices.get(layer)
        if entry is not None and not entry.users:
            self._look_again(layer, entry)
            if entry.mounted:
                self._unmount(layer, entry)

    def unmap_unused(self, layer: str, *, tidy: bool = True) -> None:
        """Unmount and unmap a layer that nobody uses. Raises LayerBusy."""
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
        """Unmount a layer whose image is to be copied, and tidy up. Raises LayerBusy if somebody has it."""
        self.unmount(layer)
        entry = self._devices.get(layer)
        if entry and (entry.mounted or unmounting.stays_in_use(entry.device)):
            raise self._devices.busy(layer, entry)
        self.tidy(layer)

    def tidy(self, layer: str) -> None:
        """Give back what mounting stored in a layer that is mapped, and mounted no more."""
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
        """Let the file system of a layer that nobody has mapped fill its image; afterwards it is unmapped again."""
        with contextlib.ExitStack() as undo:
            entry = self._devices.map(layer, undo, read_only=False)
            if self._fs == "ext4":
                mounts.grow_ext4(entry.device, timeout=self._timeout)
                return
            self._mount(layer, entry, write=True)
            undo.callback(self._unmount, layer, entry)
            mounts.grow_mounted(self._fs, entry.device, self._paths.point(layer), timeout=self._timeout)

    def grow_mounted(self, layer: str, size: int) -> None:
        """Let a mounted layer and its image have `size` bytes. Raises mounts.MountError, command.CommandError.

        It was acquired as `growing`. On failure the image may be larger than the file system.
        """
        mounts.check_growing(self._fs)
        self._layers.grow(layer, size)
        device = self._record(layer).device
        mounts.await_size(device, size, self._timeout)
        mounts.grow_mounted(self._fs, device, self._paths.point(layer), timeout=self._timeout)

    # -- from before -------------------------------------------------------------------------

    def learn(self, layer: str, mounted: mounts.Mount | None, devices: Sequence[str]) -> None:
        """Learn what an earlier life of this process had mapped of a layer, and mounted, for nobody now.

        `devices` are all that its image is mapped as. Raises OSError, mounts.MountError, command.CommandError,
        deadline.Overdue; LayerBusy if its device is gone, and its mount point cannot be unmounted.
        """
        entry = None
        if mounted is not None:
            entry = self._found(layer, mounted)
        elif devices:
            entry = MappedLayer(devices[0], mounts.is_read_only(devices[0]))
            mounts.remove_point(self._paths.point(layer))
            log.info("layer %s is mapped as %s from before, for nobody now", layer, devices[0])
        self._devices.learn(layer, entry, devices)

    def adopt(self, layer: str, user: str, *, write: bool) -> None:
        """Count a use of a layer from before; mount it if our mount is gone. Raises command.CommandError.

        `write`: somebody still has it mounted writable, or read-only; the kernel lets us have it in no other way.
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
        """Unmap a layer whose device has gone while nobody used it: a new one will do."""
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
        """Mount a layer that is mounted nowhere; a mapping that is left from before will do if it suits."""
        if idle and not finished and unmounting.stays_in_use(idle.device, unmounting.LIVE_SECONDS):
            # A container may have its view: a second one on the same directories would spoil both.
            raise self._devices.busy(layer, idle)
        if idle and (finished or (not idle.read_only and idle.exclusive == exclusive)):
            try:
                self._mount(layer, idle, write=write)
                return idle
            except command.CommandTimeout:
                raise
            except command.CommandError as error:
                # Its device may have gone meanwhile (rbd-nbd killed): a new one tells.
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
        """Mount a finished layer whose device takes no writes; tell whether its log lets that be done.

        If the power went after it was finished, and before it was unmounted, the log must be written out first.
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
        """After a time-out: learn from the mount table what was done, and end a mount that nobody was told of."""
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
            # It is our own thread that has it open, and hangs in the kernel.
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
