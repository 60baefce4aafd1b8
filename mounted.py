"""Which layers this host has mapped and mounted: for whom, how often, and what a crash left behind.

A layer `ID` is mounted at `ROOT/ID/docker` for Docker (Get until Put) and at `ROOT/ID/driver` for
our own work (ApplyDiff, Diff, Changes); both share one mapped device. The directory `ROOT/ID` is
made before the image is mapped and goes after it is unmapped. So everything can be told from the
host alone after a crash: a mount at `docker` is Docker's and stays, one at `driver` and a mapping
without a mount are left-overs.

`ROOT/ID/removed`: Docker was told that the layer is removed, and its image has yet to go.

A layer that nobody has mounted any more stays mapped until `let_go`: most are wanted again soon (`docker create`
puts what `docker start` gets), and nobody needs to wait for the unmapping.

Counts are in memory only. The caller holds the layer's lock around each call.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import busy
import command
import deadline
import holders
import kernel
import mounts
import rbdcli
from busy import LayerBusy

log = logging.getLogger("mounted")

REMOVED = "removed"
BUILDER_MOUNT = "buildkit-mount"
# What one layer from before may take of a start: the others wait for it.
LEARN_SECONDS = 5.0


class Place(enum.Enum):
    """For whom a layer is mounted; the value is the name of its mount point."""

    DOCKER = "docker"
    DRIVER = "driver"


class Images(Protocol):
    """What is mapped: the images of layers."""

    def image(self, layer: str) -> str:
        """Return the image name of a layer."""

    def is_abandoned(self, layer: str) -> bool:
        """Tell whether what this host has mapped of a layer may be taken by us. Raises ImageMissing."""


class LayerLost(Exception):
    """The device of a mounted layer went away under it: one line that says what to do."""


@dataclass
class _Entry:
    """A mapped layer. `counts` has a key for each place where it is mounted (0: nobody's, still mounted).

    `exclusive`: nobody else may write to it, nor may it grow, as far as we know.
    `doubtful`: a mount or unmount ran into its deadline, and may have been done later all the same, or somebody has the
    device and it is not known who.
    `guessed`: its count for Docker is not known but one, since it was found mounted at a start.
    `mapped_at`: the bytes written to the device before it was mapped; None if that was not by us.
    `tidy`: what the last mount stored was given back, as far as that can be done.
    `reader`: reads ahead for who has it mounted, and ends with the mount.
    """

    device: str
    read_only: bool = False
    mapped_at: int | None = None
    exclusive: bool = True
    doubtful: bool = False
    guessed: bool = False
    tidy: bool = False
    label: str = ""
    reader: subprocess.Popen[bytes] | None = None
    writable: set[Place] = field(default_factory=set)
    counts: dict[Place, int] = field(default_factory=dict)

    def written(self) -> int | None:
        """Return the bytes written since it was mapped; None if that is not known."""
        try:
            return None if self.mapped_at is None else mounts.written(self.device) - self.mapped_at
        except OSError:
            return None


class MountedLayers:
    """The mapped and mounted layers of one home."""

    def __init__(
        self,
        pool: rbdcli.Pool,
        root: str,
        images: Images,
        fs: str,
        mount_options: Sequence[str],
    ) -> None:
        self._pool = pool
        self._root = root
        self._images = images
        self._fs = fs
        self._mount_options = tuple(mount_options)
        self._entries: dict[str, _Entry] = {}
        self._removed: set[str] = set()
        # Of mappings that are gone.
        self._written: dict[str, int | None] = {}

    def point(self, layer: str, place: Place) -> str:
        """Return the mount point of a layer for `place`, whether it is mounted or not."""
        return os.path.join(self._root, layer, place.value)

    def device(self, layer: str) -> str | None:
        """Return the block device of a mapped layer."""
        entry = self._entries.get(layer)
        return entry.device if entry else None

    def is_mounted(self, layer: str, place: Place) -> bool:
        """Tell whether a layer is mounted for `place`."""
        entry = self._entries.get(layer)
        return entry is not None and place in entry.counts

    def is_writable(self, layer: str) -> bool:
        """Tell whether a layer is mounted writable, for whomever."""
        entry = self._entries.get(layer)
        return entry is not None and bool(entry.writable)

    def count(self) -> int:
        """Return how many layers are mapped."""
        return len(self._entries)

    def written(self, layer: str) -> int | None:
        """Return the bytes that were written to a layer since this object was made; None if that is not known."""
        entry = self._entries.get(layer)
        before = self._written.get(layer, 0)
        return before if entry is None else _sum(before, entry.written())

    # -- acquire and release -----------------------------------------------------------------

    def acquire(
        self, layer: str, place: Place, *, write: bool, sealed: bool, label: str = "", growing: bool = False
    ) -> Place:
        """Map and mount a layer, or count one more user of a mount; return the place to release later.

        Our own work uses Docker's mount if there is one: a super block is either writable or not.
        `sealed` layers are mapped read-only and never written to; one that is to be `growing` is not mapped
        exclusively, unless somebody has it already. On failure nothing stays behind.
        Raises rbdcli.ImageMissing, rbdcli.ImageLocked, command.CommandError, LayerBusy.
        """
        with contextlib.ExitStack() as undo:
            entry = self._entries.get(layer)
            if entry is not None:
                self._look_again(layer, entry)
                self._check_label(layer, entry, label)
            if entry is None or not entry.counts:
                mapping = (sealed, not growing)
                entry = self._mount_first(layer, entry, place, undo, write=write, mapping=mapping, label=label)
            self._check_alive(layer, entry)
            if place not in entry.counts and place is Place.DRIVER and Place.DOCKER in entry.counts:
                place = Place.DOCKER
            if place not in entry.counts:
                self._mount(layer, entry, place, undo, write=write, label=label)
            if write and place not in entry.writable:
                mounts.make_writable(self.point(layer, place), timeout=self._pool.timeout)
                entry.writable.add(place)
            entry.counts[place] += 1
            self._entries[layer] = entry
            undo.pop_all()
        return place

    def _check_label(self, layer: str, entry: _Entry, label: str) -> None:
        """Raise LayerBusy if we read a layer without a label: one super block has one, or none."""
        if not label or label == entry.label or Place.DOCKER in entry.counts:
            return
        for other, count in list(entry.counts.items()):
            if count:
                raise LayerBusy(f"layer {layer} is mounted without the label {label}, to be read; try again")
            self._unmount(layer, entry, other)

    def _mount_first(
        self,
        layer: str,
        idle: _Entry | None,
        place: Place,
        undo: contextlib.ExitStack,
        *,
        write: bool,
        mapping: tuple[bool, bool],
        label: str,
    ) -> _Entry:
        """Mount a layer that is mounted nowhere; a mapping that is left from before will do if it suits.

        `mapping`: read-only, exclusive.
        """
        read_only, exclusive = mapping
        if idle and idle.read_only == read_only and (read_only or idle.exclusive == exclusive):
            try:
                self._mount(layer, idle, place, undo, write=write, label=label)
                return idle
            except command.CommandTimeout:
                raise
            except command.CommandError as error:
                # Its device may have gone meanwhile (rbd-nbd killed): a new one tells.
                log.warning("mapping layer %s anew: %s", layer, error)
        if idle:
            self._unmap(layer, idle)
        entry = self._map(layer, undo, read_only=read_only, exclusive=exclusive)
        self._mount(layer, entry, place, undo, write=write, label=label)
        return entry

    def release(self, layer: str, place: Place) -> bool:
        """Count one user of a mount less; the last one unmounts it. Tell whether the layer is mapped for nobody now.

        A layer that is not mounted there is none of our business: Docker puts what it never got after
        a crash. Nor does it end the mount of a running container by a Put whose answer was lost in the crash, and that
        it sends once more. Raises LayerBusy: the layer then stays mounted and the next release tries again.
        """
        entry = self._entries.get(layer)
        if entry is None:
            return False
        self._look_again(layer, entry)
        if place in entry.counts:
            entry.counts[place] = max(0, entry.counts[place] - 1)
            if entry.counts[place]:
                return False
            writable = place in entry.writable
            self._unmount(layer, entry, place)
            if entry.guessed and not entry.counts and busy.stays_in_use(entry.device, busy.LIVE_SECONDS):
                self._mount_for_container(layer, entry, write=writable)
        return not entry.counts

    def read_ahead(self, layer: str, place: Place, began: int, chunks: Sequence[int] | None) -> None:
        """Read what changed since `began` in a mounted layer, behind, for who reads all of it (mounts.read_ahead)."""
        entry = self._entries.get(layer)
        if entry and entry.reader is None:
            entry.reader = mounts.read_ahead(self._fs, self.point(layer, place), began, chunks)

    def end_readers(self) -> None:
        """End what reads ahead: nobody waits for it, and another object would not know of it."""
        for entry in self._entries.values():
            if entry.reader:
                command.stop(entry.reader)
                entry.reader = None

    def tidy(self, layer: str, granule: int) -> None:
        """Give back what mounting stored in a layer that is mapped for nobody, in units of `granule` bytes."""
        entry = self._entries.get(layer)
        if self._fs == "xfs" and entry and not (entry.counts or entry.read_only or entry.tidy):
            entry.tidy = True
            try:
                mounts.give_back_log(entry.device, granule, timeout=self._pool.timeout)
            except (OSError, ValueError, deadline.Overdue) as error:
                log.warning("layer %s keeps 2 MiB that it does not need: %s", layer, error)

    def let_go(self, layer: str) -> None:
        """Unmount and unmap a layer that is mounted and mapped for nobody, or removed. Raises LayerBusy."""
        entry = self._entries.get(layer)
        if entry is None:
            return
        self._look_again(layer, entry)
        for place, count in list(entry.counts.items()):
            if not count or layer in self._removed:
                self._unmount(layer, entry, place)
        if not entry.counts:
            self._unmap(layer, entry)

    def grow(self, layer: str) -> None:
        """Let the file system of a layer that nobody has mapped fill its image; afterwards it is unmapped again."""
        with contextlib.ExitStack() as undo:
            entry = self._map(layer, undo, read_only=False)
            if self._fs == "ext4":
                mounts.grow_ext4(entry.device, timeout=self._pool.timeout)
            else:
                self._mount(layer, entry, Place.DRIVER, undo, write=True, label="")
                point = self.point(layer, Place.DRIVER)
                mounts.grow_mounted(self._fs, entry.device, point, timeout=self._pool.timeout)

    def grow_mounted(self, layer: str, place: Place, size: int, resize: Callable[[], None]) -> None:
        """Let a mounted layer and its image, by `resize`, have `size` bytes. Raises MountError, command.CommandError.

        It was acquired as `growing`. On failure the image may be larger than the file system.
        """
        mounts.check_growing(self._fs)
        resize()
        device, timeout = self._entries[layer].device, self._pool.timeout
        mounts.await_size(device, size, timeout)
        mounts.grow_mounted(self._fs, device, self.point(layer, place), timeout=timeout)

    def reclaim(self, layer: str) -> bool:
        """Unmap what this host has mapped of a layer for a home that is gone; tell whether there was such.

        A managed plugin was removed and made anew. Another driver's home is there, and so is the driver, even while it
        has just mapped and not mounted it yet. Raises LayerBusy.
        """
        if not self._mappings(layer) or not self._images.is_abandoned(layer):
            return False
        try:
            self._unmap_leftover(layer)
        except BaseException:
            # Another driver of this host is at work with it. It ends that mapping, not we: remembered as ours,
            # its device could by then be another image's.
            self._entries.pop(layer, None)
            raise
        return True

    # -- removal -----------------------------------------------------------------------------

    def discard(self, layer: str) -> None:
        """Unmount a layer whatever its counts say: BuildKit removes what it never put.

        Raises LayerBusy if somebody has it mounted, command.CommandTimeout or deadline.Overdue if the kernel does not
        come to its end: it may still write what nobody wants any more.
        """
        entry = self._entries.get(layer)
        if entry is None:
            return
        self._look_again(layer, entry)
        for place in list(entry.counts):
            self._unmount(layer, entry, place)
        if busy.stays_in_use(entry.device) and busy.is_mounted_anywhere(entry.device):
            raise self._busy(layer, entry)

    def is_written_back(self, layer: str) -> bool:
        """Tell whether nobody has a layer mounted, but the kernel is not done with its file system."""
        entry = self._entries.get(layer)
        return entry is not None and mounts.in_use(entry.device) and not busy.is_mounted_anywhere(entry.device)

    def note_removed(self, layer: str) -> None:
        """Note that a layer is removed.

        The note is as good as this host's memory: a power cut may lose it, the end of this process does not.
        """
        mounts.make_directory(self._note(layer))
        self._removed.add(layer)
        self._written.pop(layer, None)

    def is_removed(self, layer: str) -> bool:
        """Tell whether a layer is noted as removed."""
        return layer in self._removed

    def removed(self) -> Sequence[str]:
        """Name the layers that are noted as removed."""
        return sorted(self._removed)

    def forget(self, layer: str) -> None:
        """Take the note away that a layer is removed, which is unmapped."""
        self._removed.discard(layer)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._note(layer))
        self._remove_directories(layer)

    def _note(self, layer: str) -> str:
        return os.path.join(self._root, layer, REMOVED)

    # -- after a restart ---------------------------------------------------------------------

    def learn(self) -> list[str]:
        """Learn from the host what an earlier life of this process had mapped; return what is to be let go of it.

        A mount for Docker counts as one user (moby's graphdriver/counter.go does the same). What was mounted or mapped
        for that life's own work counts as nobody's. One layer that cannot be looked at does not keep the others.
        """
        self._entries.clear()
        self._written.clear()
        layers = sorted(os.listdir(self._root))
        self._removed = {layer for layer in layers if os.path.isdir(self._note(layer))}
        mounted = {found.point: found for found in mounts.table()}
        mapped: dict[str, list[str]] = {}
        for item in self._pool.mappings() if layers else ():
            mapped.setdefault(item.image, []).append(item.device)
        for layer in layers:
            devices = mapped.get(self._images.image(layer), [])
            try:
                mounts.make_directory(os.path.join(self._root, layer))
                with deadline.within(LEARN_SECONDS):
                    self._learn(layer, mounted, devices)
                    self._unmap_further(layer, devices)
            except (OSError, mounts.MountError, command.CommandError, deadline.Overdue) as error:
                log.error("layer %s from before: %s", layer, error)
        return self._unwanted()

    def _unwanted(self) -> list[str]:
        """Name the layers that are mapped for nobody; those that are removed have somebody who sees to them."""
        found = [layer for layer, entry in self._entries.items() if not any(entry.counts.values())]
        return [layer for layer in found if layer not in self._removed]

    def _learn(self, layer: str, mounted: Mapping[str, mounts.Mount], devices: Sequence[str]) -> None:
        found = {place: mounted[point] for place in Place if (point := self.point(layer, place)) in mounted}
        if found:
            self._learn_mounts(layer, found)
        elif devices:
            self._entries[layer] = _Entry(devices[0], mounts.is_read_only(devices[0]))
            if layer not in self._removed:
                self._mount_again(layer)
        elif layer not in self._removed:
            self._remove_directories(layer)

    def _unmap_further(self, layer: str, devices: Iterable[str]) -> None:
        """Unmap what a layer has besides its one device: a command that timed out may have mapped it all the same."""
        entry = self._entries.get(layer)
        for device in devices:
            if entry and device != entry.device and not mounts.in_use(device):
                log.warning("layer %s was mapped twice: unmapping %s", layer, device)
                self._unmap_device(layer, device)

    def _learn_mounts(self, layer: str, found: dict[Place, mounts.Mount]) -> None:
        first = next(iter(found.values()))
        try:
            device = mounts.device_path(first.device_number)
            read_only = mounts.is_read_only(device)
        except (mounts.MountError, OSError) as error:
            log.error("unmounting layer %s: %s", layer, error)
            for item in found.values():
                busy.unmount(item.point, self._pool.timeout)
            self._remove_directories(layer)
            return
        entry = _Entry(device, read_only, guessed=True, label=first.label)
        entry.writable = {place for place, item in found.items() if not item.read_only}
        entry.counts = {place: int(place is Place.DOCKER) for place in found}
        self._entries[layer] = entry
        if Place.DRIVER in found:
            log.warning("%s is from before, for nobody now", self.point(layer, Place.DRIVER))

    def _mount_again(self, layer: str) -> None:
        """Mount a layer that a container uses although our own mount is gone.

        The mount namespace of a managed plugin ends with it (`docker plugin disable --force`), or it was killed in a
        Put that had to mount anew; the containers have a namespace of their own, and the kernel keeps the device.
        """
        entry = self._entries[layer]
        if mounts.in_use(entry.device):
            entry.label = holders.label(mounts.device_number(entry.device))
            self._mount_for_container(layer, entry, write=not entry.read_only)
        else:
            log.info("layer %s is mapped as %s from before, for nobody now", layer, entry.device)

    def _mount_for_container(self, layer: str, entry: _Entry, *, write: bool) -> None:
        with contextlib.ExitStack() as undo:
            self._mount(layer, entry, Place.DOCKER, undo, write=write, label=entry.label)
            undo.pop_all()
        entry.counts[Place.DOCKER], entry.guessed = 1, True
        log.info("%s is in use by a running container, mounted at %s", layer, self.point(layer, Place.DOCKER))

    def settle(self) -> list[str]:
        """Docker has started anew: keep mounted, as one user each, what a container still uses; unmount the rest.

        Returns the layers that are mapped for nobody now. One that cannot be unmounted does not keep the others.

        A running container (live-restore) holds the file system in its own mount namespace: without
        our mount the device is then still in use. A builder that was killed with the former daemon holds it in ours.
        """
        self._unmount_builders()
        for layer, entry in list(self._entries.items()):
            if Place.DOCKER in entry.counts and layer not in self._removed:
                try:
                    with deadline.within(LEARN_SECONDS):
                        self._settle(layer, entry)
                except (OSError, command.CommandError, deadline.Overdue) as error:
                    log.error("layer %s from before: %s", layer, error)
        return self._unwanted()

    def settle_guessed(self, layer: str) -> None:
        """Do the same to one layer, if its user for Docker is only guessed: the caller knows that Docker has put it.

        A Put that met the end of an earlier life of ours is lost: Docker repeats it without a body, and gives up.
        """
        entry = self._entries.get(layer)
        if entry is not None and entry.guessed and Place.DOCKER in entry.counts:
            self._settle(layer, entry)
            if not entry.counts:
                self._unmap(layer, entry)

    def _settle(self, layer: str, entry: _Entry) -> None:
        writable = Place.DOCKER in entry.writable
        try:
            self._unmount(layer, entry, Place.DOCKER)
        except LayerBusy as error:
            log.info("%s stays mounted: %s", layer, error)
            entry.counts[Place.DOCKER], entry.guessed = 1, True
            return
        if mounts.in_use(entry.device):
            self._mount_for_container(layer, entry, write=writable)

    def _unmount_builders(self) -> None:
        """End what BuildKit left mounted (buildkit, snapshot/localmounter_unix.go): no build is running now.

        dockerd renames the directory in which these mounts are, and tries to delete it.
        """
        devices = set()
        for entry in self._entries.values():
            # One may have gone, or go now (rbd-nbd killed).
            with contextlib.suppress(OSError):
                devices.add(mounts.device_number(entry.device))
        for item in reversed(mounts.table()):
            if os.path.basename(item.point).startswith(BUILDER_MOUNT) and item.device_number in devices:
                log.warning("unmounting %s, left behind by a builder", item.point)
                try:
                    with deadline.within(LEARN_SECONDS):
                        busy.unmount(item.point, self._pool.timeout)
                except (LayerBusy, command.CommandError, OSError) as error:
                    log.error("%s", error)

    def _unmap_leftover(self, layer: str) -> None:
        """A directory without a mount: the image may be mapped all the same."""
        for mapping in self._mappings(layer):
            log.warning("unmapping %s from %s, left behind by a crash", mapping.image, mapping.device)
            self._unmap(layer, _Entry(mapping.device))
        self._remove_directories(layer)

    def _mappings(self, layer: str) -> Sequence[rbdcli.Mapping]:
        return [item for item in self._pool.mappings() if item.image == self._images.image(layer)]

    # -- one step each -----------------------------------------------------------------------

    def _map(self, layer: str, undo: contextlib.ExitStack, *, read_only: bool, exclusive: bool = True) -> _Entry:
        mounts.make_directory(os.path.join(self._root, layer))
        undo.callback(self._remove_unless_mapped, layer)
        try:
            device = self._map_device(self._images.image(layer), read_only=read_only, exclusive=exclusive)
        except command.CommandTimeout:
            # The kernel may have done it all the same. If the list does not answer either, the
            # directory stays, and the next start finds the mapping by it.
            undo.pop_all()
            self._unmap_leftover(layer)
            raise
        except rbdcli.ImageLocked:
            if not self.reclaim(layer):
                raise
            return self._map(layer, undo, read_only=read_only, exclusive=exclusive)
        if not read_only:
            mounts.merge_writes(device)
        entry = _Entry(device, read_only, mounts.written(device), exclusive)

        def unmap(_: object, error: BaseException | None, __: object) -> None:
            try:
                self._unmap(layer, entry)
            except (command.CommandError, LayerBusy, deadline.Overdue) as failure:
                if error is None:
                    raise
                # Why it is unmapped is worth more to the caller; who needs the layer next tries again.
                log.error("layer %s stays mapped: %s", layer, failure)

        undo.push(unmap)
        return entry

    def _map_device(self, image: str, *, read_only: bool, exclusive: bool) -> str:
        with kernel.Log() as messages:
            try:
                return self._pool.map(image, read_only=read_only, exclusive=exclusive)
            except rbdcli.RbdError as error:
                said = messages.about("rbd", "libceph", "nbd")
                raise error.explained(said and f"kernel: {said}") from None

    def _look_again(self, layer: str, entry: _Entry) -> None:
        """After a time-out: learn from the mount table what was done, and end a mount that nobody was told of."""
        if not entry.doubtful:
            return
        for place in Place:
            mounted = mounts.at(self.point(layer, place)) is not None
            if mounted and place not in entry.counts:
                busy.unmount(self.point(layer, place), self._pool.timeout)
            elif not mounted and place in entry.counts:
                self._not_mounted(layer, entry, place)
        entry.doubtful = False

    def _check_alive(self, layer: str, entry: _Entry) -> None:
        """Raise LayerLost if the file system of a mounted layer was shut down, since its device went away."""
        for place in entry.counts:
            point = self.point(layer, place)
            try:
                deadline.call(lambda point=point: os.stat(point), point, self._pool.timeout)  # type: ignore[misc]
            except OSError as error:
                raise LayerLost(
                    f"layer {layer}: its device {entry.device} is gone ({error.strerror}); stop what uses it: "
                    f"the next start maps it anew"
                ) from None

    def _mount(
        self, layer: str, entry: _Entry, place: Place, undo: contextlib.ExitStack, *, write: bool, label: str
    ) -> None:
        point = self.point(layer, place)
        mounts.make_directory(point)
        timeout = self._pool.timeout
        if entry.counts:
            # One super block for all mounts of a device, with one set of options: show it once more.
            source = next(iter(entry.counts))
            if write and source not in entry.writable:
                # Before, not after: other mount namespaces get the new mount as it is now, no remount reaches them.
                mounts.make_writable(self.point(layer, source), timeout=timeout)
                entry.writable.add(source)
            mounts.bind(self.point(layer, source), point, timeout=timeout)
            if source in entry.writable:
                entry.writable.add(place)
        else:
            self._mount_device(entry, point, write=write, label=label)
            entry.tidy = False
            entry.writable, entry.label = {place} if write else set(), label
        entry.counts[place] = 0
        undo.callback(self._unmount, layer, entry, place)

    def _mount_device(self, entry: _Entry, point: str, *, write: bool, label: str) -> None:
        options, timeout = self._mount_options, self._pool.timeout
        before = entry.written()
        with _doubting(entry):
            mounts.mount(self._fs, entry.device, point, options, read_only=not write, label=label, timeout=timeout)
        mounts.limit_retries(self._fs, entry.device, timeout)
        if before is not None:
            # What the mount itself wrote is given back later (xfslog.py).
            entry.mapped_at = mounts.written(entry.device) - before

    def _unmount(self, layer: str, entry: _Entry, place: Place) -> None:
        if entry.reader:
            failure = command.stop(entry.reader)
            entry.reader = None
            if failure:
                log.warning("layer %s was not read ahead: %s", layer, failure)
        with _doubting(entry):
            busy.unmount(self.point(layer, place), self._pool.timeout)
        self._not_mounted(layer, entry, place)

    def _not_mounted(self, layer: str, entry: _Entry, place: Place) -> None:
        del entry.counts[place]
        entry.writable.discard(place)
        # Removing the directory also drops the mount from every namespace that copied it
        # (Linux 3.18, "vfs: Lazily remove mounts on unlinked files and directories").
        os.rmdir(self.point(layer, place))

    def _unmap(self, layer: str, entry: _Entry) -> None:
        # Until it is unmapped it is one of ours, whatever goes wrong.
        self._entries[layer] = entry
        written = entry.written()
        for _ in busy.until_free():
            if not mounts.in_use(entry.device) and self._unmap_device(layer, entry.device):
                break
        else:
            if rbdcli.Mapping(self._images.image(layer), entry.device) in self._pool.mappings():
                raise self._busy(layer, entry)
            log.error("layer %s: its device %s vanished, and is another image's now", layer, entry.device)
        self._written[layer] = _sum(self._written.get(layer, 0), written)
        self._entries.pop(layer, None)
        self._remove_directories(layer)

    def _busy(self, layer: str, entry: _Entry) -> LayerBusy:
        """Say who has the device of a layer, and doubt what is mounted of it.

        A mount that was killed and hung in the kernel, ours or of an earlier life, may come to its end yet.
        """
        entry.doubtful = True
        try:
            said = holders.of_device(mounts.device_number(entry.device))
        except OSError as error:
            said = f"now it is gone ({error.strerror})"
        return LayerBusy(f"layer {layer}: {entry.device} cannot be unmapped: {said}")

    def _unmap_device(self, layer: str, device: str) -> bool:
        """Unmap a device, false while somebody holds it; one that vanished by itself is unmapped."""
        try:
            self._pool.unmap(device, self._images.image(layer))
        except rbdcli.ImageBusy:
            return False
        except rbdcli.NotMapped as error:
            log.error("layer %s: its device %s vanished: %s", layer, device, error)
        return True

    def _remove_unless_mapped(self, layer: str) -> None:
        if layer not in self._entries:
            self._remove_directories(layer)

    def _remove_directories(self, layer: str) -> None:
        top = () if layer in self._removed else (os.path.join(self._root, layer),)
        for path in (*(self.point(layer, place) for place in Place), *top):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(path)


@contextlib.contextmanager
def _doubting(entry: _Entry) -> Iterator[None]:
    try:
        yield
    except command.CommandTimeout:
        entry.doubtful = True
        raise


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
