"""The layers' own file systems on this host: each mapped and mounted once, for all who need it.

A layer `ID` is mounted at `ROOT/ID/layer`; the directory `ROOT/ID` is made before its image is mapped and goes after
it is unmapped, so that what a crash left can be told from the host alone. `LINKS/SHORT` is a link to what the layer
brought, under a name of a few letters (`Views` joins up to 127 of them with one page of options).

Who needs a layer is a user of it, by a name of his own. A finished layer is mounted read-only, and shared; one that
nobody uses any more stays until `let_go`: most are wanted again soon. What was written to one that is not finished is
in the cluster when its last user leaves it.

What is known of users is in memory only. The caller holds the layer's lock around each call, but for
`leave`.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import functools
import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import mounts
import rbdcli
from host import command, deadline, kernel_log
from images import layer_state
from mapped import busy, elsewhere, former_maps, holders
from mapped.busy import LayerBusy

log = logging.getLogger("filesystems")

POINT = "layer"
# A directory beside it: Docker was told that the layer is removed, and its image has yet to go.
REMOVED = "removed"
# Devices that are asked at the same time whether they live: each takes as long as the cluster does.
PROBES_AT_ONCE = 8
# So many letters of base 32 tell 2^65 layers apart.
SHORT = 13


# The daemon for which a request works; what is done in the background is for none.
_asking: contextvars.ContextVar[object] = contextvars.ContextVar("asking", default=None)


class Images(Protocol):
    """What is mapped: the images of layers."""

    def image(self, layer: str) -> str:
        """Return the image name of a layer."""

    def parents(self, layer: str) -> Sequence[str]:
        """Return what is below a layer, nearest first."""

    def is_abandoned(self, layer: str) -> bool:
        """Tell whether what this host has mapped of a layer may be taken by us. Raises ImageMissing."""


class LayerLost(Exception):
    """The device of a mounted layer went away under it: one line that says what to do."""


@dataclass
class _Entry:
    """A mapped layer. `read_only`: its device; `writable`: its mount.

    `exclusive`: nobody else may write to it, nor may it grow, as far as we know.
    `sealed`: it is finished.
    `doubtful`: a mount or unmount ran into its deadline, and may have been done later all the same, or somebody has the
    device and it is not known who.
    `tidy`: what the last mount stored was given back, as far as that can be done.
    `flushing`: what was written is being written out, since a user left, longer than he could wait.
    `ending`: to unmount it hangs in the kernel, which writes out what is left.
    `writers`: the users for whom it is writable.
    `cost`: the seconds that it took to map it; 0 if that was not by us.
    """

    device: str
    read_only: bool = False
    exclusive: bool = True
    mounted: bool = False
    writable: bool = False
    sealed: bool = False
    doubtful: bool = False
    tidy: bool = False
    flushing: bool = False
    ending: bool = False
    cost: float = 0.0
    writers: set[str] = field(default_factory=set)
    users: Counter[str] = field(default_factory=Counter)


class FileSystems:
    """The mapped layers of one home."""

    def __init__(
        self, pool: rbdcli.Pool, home: str, images: Images, *, fs: str, options: Sequence[str], granule: int
    ) -> None:
        """`options` are for mounting `fs`; `granule` is in how many bytes the pool stores at least."""
        self._pool = pool
        self.root = os.path.join(home, "mnt")
        self.links = os.path.join(home, "l")
        self._images = images
        self._fs = fs
        self._options = tuple(options)
        self._granule = granule
        self._entries: dict[str, _Entry] = {}
        # Of these a map from before our start hangs in the kernel, and may come to its end yet.
        self._unfinished: set[str] = set()
        self._counting = threading.Lock()
        self._daemon = object()

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Do what the daemon of now asks for in the `with` block: nothing is mounted in it once that has ended."""
        token = _asking.set(self._daemon)
        try:
            yield
        finally:
            _asking.reset(token)

    def end_daemon(self) -> None:
        """The daemon ends: what it has asked for, and waits for no more, mounts nothing from now on.

        It unmounts all that is below its data root, and the next one mounts that anew, above what is mounted meanwhile.
        """
        self._daemon = object()

    def refuse_if_ended(self, layer: str) -> None:
        """Raise LayerBusy if a layer is about to be mounted for a daemon that has ended."""
        if _asking.get() not in (None, self._daemon):
            raise LayerBusy(f"layer {layer} is not mounted: the daemon that asked for it has ended")

    def directory(self, layer: str) -> str:
        """Return the directory of all that is mounted of a layer."""
        return os.path.join(self.root, layer)

    def point(self, layer: str) -> str:
        """Return the mount point of a layer's file system, whether it is mounted or not."""
        return os.path.join(self.root, layer, POINT)

    def device(self, layer: str) -> str | None:
        """Return the block device of a mapped layer."""
        entry = self._entries.get(layer)
        return entry.device if entry else None

    def is_mounted(self, layer: str) -> bool:
        """Tell whether a layer's file system is mounted."""
        entry = self._entries.get(layer)
        return entry is not None and entry.mounted

    def is_writable(self, layer: str) -> bool:
        """Tell whether a layer is mapped writable: it may have a writable view."""
        entry = self._entries.get(layer)
        return entry is not None and not entry.read_only

    def mapped(self) -> list[str]:
        """Name the mapped layers."""
        return list(self._entries)

    def unused(self) -> list[str]:
        """Name the layers that are mapped for nobody, or may be."""
        return [*self._unfinished, *(layer for layer, entry in list(self._entries.items()) if not entry.users)]

    def cost(self, layer: str) -> float:
        """Return the seconds that it took to map a layer; 0 if that is not known."""
        entry = self._entries.get(layer)
        return entry.cost if entry else 0.0

    def users(self, layer: str) -> set[str]:
        """Name the users of a layer."""
        entry = self._entries.get(layer)
        return set(entry.users) if entry else set()

    # -- acquire and release -----------------------------------------------------------------

    def acquire(self, layer: str, user: str, *, write: bool, sealed: bool, growing: bool = False) -> None:
        """Map and mount a layer for one more use; whether it lives is for the caller to see, who may need several.

        `sealed`: it is finished, and mounted read-only. One that is to be `growing` is not mapped exclusively, unless
        somebody has it already. On failure nothing stays behind. Raises rbdcli.ImageMissing, rbdcli.ImageLocked,
        command.CommandError, LayerBusy.
        """
        with contextlib.ExitStack() as undo:
            entry = self._entries.get(layer)
            if entry is not None:
                self._look_again(layer, entry)
                entry = self._without_dead(layer, entry)
            if entry is not None and growing and entry.exclusive and not entry.users:
                self.let_go(layer)
                entry = None
            if entry is None or not entry.mounted:
                entry = self._mount_first(layer, entry, undo, write=write, sealed=sealed, exclusive=not growing)
            entry.sealed = entry.sealed or sealed
            if write and not entry.writable:
                self._remount(layer, entry, read_only=False)
            elif sealed and entry.writable and not entry.writers:
                # The kernel would do it under a view that is written to, too, and without a word.
                self._remount(layer, entry, read_only=True)
            self._count(entry, user, write=write)
            undo.pop_all()

    def release(self, layer: str, user: str, *, flush: bool = True) -> bool:
        """Count one use of a layer less; tell whether it is mapped for nobody now.

        What was written to it is in the cluster then, unless nobody wants that, and so `flush` is false. Raises
        deadline.Overdue: it may not be there yet.
        """
        entry = self._entries.get(layer)
        if entry is None:
            return False
        self._uncount(entry, user)
        if entry.users:
            return False
        self._look_again(layer, entry)
        if flush and entry.mounted and entry.writable and not entry.sealed:
            # To unmount it takes longer, and it may be wanted again: dockerd gets each container twice to start it.
            try:
                self._flush(layer, entry)
            except OSError as error:
                log.error("layer %s is unmounted: its device %s takes nothing: %s", layer, entry.device, error)
                self._unmount(layer, entry)
        return True

    def _flush(self, layer: str, entry: _Entry) -> None:
        point = self.point(layer)

        def work() -> None:
            try:
                layer_state.flush(point)
            finally:
                entry.flushing = False

        entry.flushing = True
        deadline.call(work, point, self._pool.timeout)

    def leave(self, layer: str, user: str) -> None:
        """Count one use of a finished layer less, whoever is at work with it: without its lock."""
        entry = self._entries.get(layer)
        if entry is not None:
            self._uncount(entry, user)

    def seal(self, layer: str) -> None:
        """Note that a layer is finished; it becomes read-only when it is used next."""
        entry = self._entries.get(layer)
        if entry is not None:
            entry.sealed = True

    def make_writable(self, layer: str) -> None:
        """Let a mounted layer that is not finished be written to. Raises command.CommandError."""
        entry = self._entries[layer]
        if not entry.writable:
            self._remount(layer, entry, read_only=False)

    def check_alive(self, layer: str, *others: str, ask: bool = False, user: str = "") -> None:
        """Raise LayerLost if the device of a mounted layer, or of one of the others, which it needs, went away.

        A file system that was written to is shut down then. One that is only read goes on as far as it is in memory:
        to find out takes `ask`, which asks each device. `user`: who does not use it yet, and need not be stopped.
        """
        entries = [(each, entry) for each in (layer, *others) if (entry := self._entries.get(each)) and entry.mounted]

        def look(some: list[tuple[str, _Entry]]) -> tuple[str, OSError] | None:
            for each, entry in some:
                try:
                    os.stat(self.point(each))
                    if ask:
                        mounts.probe(entry.device)
                except OSError as error:
                    return each, error
            return None

        groups = [entries[at::PROBES_AT_ONCE] for at in range(PROBES_AT_ONCE)] if ask else [entries]
        looks = [functools.partial(look, group) for group in groups if group]
        dead = next(filter(None, deadline.call_all(looks, self.point(layer), self._pool.timeout)), None)
        if dead:
            lost, error = dead
            users = {each.partition("/")[0] for each in self.users(lost).difference((user,))}
            raise LayerLost(
                f"layer {lost}: its device {self.device(lost)} is gone ({error.strerror}); stop what uses it "
                f"({', '.join(sorted(users)) or 'nothing now'}): the next start maps it anew"
            )

    def tidy(self, layer: str) -> None:
        """Give back what mounting stored in a layer that is mapped, and mounted no more."""
        entry = self._entries.get(layer)
        if self._fs != "xfs" or not entry or entry.mounted or entry.read_only or entry.tidy:
            return
        entry.tidy = True
        try:
            mounts.give_back_log(entry.device, self._granule, timeout=self._pool.timeout)
        except (OSError, ValueError, deadline.Overdue) as error:
            log.warning("layer %s keeps 2 MiB that it does not need: %s", layer, error)

    def quiesce(self, layer: str) -> None:
        """Unmount a layer whose image is to be copied, and tidy up. Raises LayerBusy if somebody has it."""
        self.unmount(layer)
        entry = self._entries.get(layer)
        if entry and (entry.mounted or busy.stays_in_use(entry.device)):
            raise self._busy(layer, entry)
        self.tidy(layer)

    def unmount(self, layer: str) -> None:
        """Unmount a layer that nobody uses; it stays mapped. Raises LayerBusy, command.CommandError."""
        entry = self._entries.get(layer)
        if entry is not None and not entry.users:
            self._look_again(layer, entry)
            if entry.mounted:
                self._unmount(layer, entry)

    def let_go(self, layer: str, *, tidy: bool = True) -> None:
        """Unmount and unmap a layer that nobody uses. Raises LayerBusy."""
        entry = self._entries.get(layer)
        if entry is not None:
            if entry.users:
                return
            self.unmount(layer)
            if tidy:
                self.tidy(layer)
            self._unmap(layer, entry)
        if layer in self._unfinished:
            self._let_go_of_unfinished(layer)

    def _let_go_of_unfinished(self, layer: str) -> None:
        if former_maps.maps(self._pool, {self._images.image(layer)}):
            raise LayerBusy(f"layer {layer}: a command that maps it hangs in the kernel, from before this start")
        self._unmap_leftover(layer)
        self._unfinished.discard(layer)

    # -- growing -----------------------------------------------------------------------------

    def grow(self, layer: str) -> None:
        """Let the file system of a layer that nobody has mapped fill its image; afterwards it is unmapped again."""
        with contextlib.ExitStack() as undo:
            entry = self._map(layer, undo, read_only=False)
            if self._fs == "ext4":
                mounts.grow_ext4(entry.device, timeout=self._pool.timeout)
                return
            self._mount(layer, entry, write=True)
            undo.callback(self._unmount, layer, entry)
            mounts.grow_mounted(self._fs, entry.device, self.point(layer), timeout=self._pool.timeout)

    def grow_mounted(self, layer: str, size: int, resize: Callable[[], None]) -> None:
        """Let a mounted layer and its image, by `resize`, have `size` bytes. Raises MountError, command.CommandError.

        It was acquired as `growing`. On failure the image may be larger than the file system.
        """
        mounts.check_growing(self._fs)
        resize()
        device, timeout = self._entries[layer].device, self._pool.timeout
        mounts.await_size(device, size, timeout)
        mounts.grow_mounted(self._fs, device, self.point(layer), timeout=timeout)

    # -- who else has it ---------------------------------------------------------------------

    def is_held(self, layer: str) -> bool:
        """Tell whether any process sees a layer, or its view, mounted; else the kernel may be at work with it."""
        entry = self._entries.get(layer)
        if entry is None or not mounts.in_use(entry.device):
            return False
        return busy.is_mounted_anywhere(entry.device) or bool(elsewhere.viewed_by(self.source(layer)))

    def is_written_back(self, layer: str) -> bool:
        """Tell whether nobody has a layer mounted, but the kernel is not done with what was written to it."""
        entry = self._entries.get(layer)
        if entry is None or entry.read_only or (entry.sealed and not entry.ending):
            return False
        return mounts.in_use(entry.device) and not self.is_held(layer)

    def is_in_use(self, layer: str) -> bool:
        """Tell whether a mapped layer's device is in use."""
        entry = self._entries.get(layer)
        return entry is not None and mounts.in_use(entry.device)

    def refuse_if_held(self, layer: str) -> None:
        """Raise LayerBusy if somebody still has a layer mounted that we have not, or no more."""
        entry = self._entries.get(layer)
        if entry and not entry.mounted and busy.stays_in_use(entry.device) and self.is_held(layer):
            raise self._busy(layer, entry)

    def refuse_if_viewed(self, layer: str) -> None:
        """Raise LayerBusy if somebody has a view of a layer of which we have none: a second one would spoil both."""
        held: list[str] = []
        for _ in busy.until_free(busy.LIVE_SECONDS):
            held = elsewhere.viewed_by(self.source(layer))
            if not held:
                return
        raise LayerBusy(f"layer {layer}: {'; '.join(held)}")

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

    # -- after a restart ---------------------------------------------------------------------

    def layers(self) -> list[str]:
        """Name the layers that this host has a directory of."""
        return sorted(os.listdir(self.root))

    def remove_stale_links(self) -> None:
        """Remove the links of layers that this host has no directory of any more."""
        shorts = {self.short(layer) for layer in self.layers()}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.links):
                if name not in shorts:
                    os.unlink(os.path.join(self.links, name))

    def end_maps(self, layers: Iterable[str]) -> None:
        """End what maps these layers for an earlier life of this process, and remember what hangs in the kernel."""
        images = {self._images.image(layer): layer for layer in layers}
        self._unfinished = {images[image] for image in former_maps.end_maps(self._pool, images)}

    def learn(self, layer: str, mounted: mounts.Mount | None, devices: Sequence[str]) -> None:
        """Learn what an earlier life of this process had mapped of a layer, and mounted, for nobody now.

        `devices` are all that its image is mapped as. Raises OSError, mounts.MountError, command.CommandError,
        deadline.Overdue; LayerBusy if its device is gone, and its mount point cannot be unmounted.
        """
        self._entries.pop(layer, None)
        if mounted is not None:
            self._learn_mount(layer, mounted)
        elif devices:
            self._entries[layer] = _Entry(devices[0], mounts.is_read_only(devices[0]))
            mounts.remove_point(self.point(layer))
            log.info("layer %s is mapped as %s from before, for nobody now", layer, devices[0])
        self._unmap_further(layer, devices)

    def adopt(self, layer: str, user: str, *, write: bool) -> None:
        """Count a use of a layer from before; mount it if our mount is gone. Raises command.CommandError.

        `write`: somebody still has it mounted writable, or read-only; the kernel lets us have it in no other way.
        """
        entry = self._entries.get(layer)
        if entry is None:
            return
        if not entry.mounted:
            self._mount(layer, entry, write=write)
        self._count(entry, user, write=write)

    def _learn_mount(self, layer: str, mounted: mounts.Mount) -> None:
        try:
            device = mounts.device_path(mounted.device_number)
            entry = _Entry(device, mounts.is_read_only(device), mounted=True, writable=not mounted.read_only)
        except (mounts.MountError, OSError) as error:
            log.error("unmounting layer %s: %s", layer, error)
            busy.unmount(mounted.point, self._pool.timeout)
            return
        self._entries[layer] = entry

    def _unmap_further(self, layer: str, devices: Iterable[str]) -> None:
        """Unmap what a layer has besides its one device: a command that timed out may have mapped it all the same."""
        entry = self._entries.get(layer)
        for device in devices:
            if entry and device != entry.device and not mounts.in_use(device):
                log.warning("layer %s was mapped twice: unmapping %s", layer, device)
                self._unmap_device(layer, device)

    def _unmap_leftover(self, layer: str) -> None:
        """A directory without a mount: the image may be mapped all the same."""
        for mapping in self._mappings(layer):
            log.warning("unmapping %s from %s, left behind by a crash", mapping.image, mapping.device)
            self._unmap(layer, _Entry(mapping.device))
        self.remove_directories(layer)

    def _mappings(self, layer: str) -> Sequence[rbdcli.Mapping]:
        return [item for item in self._pool.mappings() if item.image == self._images.image(layer)]

    # -- one step each -----------------------------------------------------------------------

    def _count(self, entry: _Entry, user: str, *, write: bool) -> None:
        with self._counting:
            entry.users[user] += 1
            if write:
                entry.writers.add(user)

    def _uncount(self, entry: _Entry, user: str) -> None:
        with self._counting:
            entry.users -= Counter((user,))
            if user not in entry.users:
                entry.writers.discard(user)

    def _without_dead(self, layer: str, entry: _Entry) -> _Entry | None:
        """Unmap a layer whose device has gone while nobody used it: a new one will do."""
        if entry.users or not entry.mounted:
            return entry
        try:
            self.check_alive(layer, ask=True)
        except LayerLost as error:
            log.warning("%s", error)
            self._unmount(layer, entry)
            self._unmap(layer, entry)
            return None
        return entry

    def _mount_first(
        self,
        layer: str,
        idle: _Entry | None,
        undo: contextlib.ExitStack,
        *,
        write: bool,
        sealed: bool,
        exclusive: bool,
    ) -> _Entry:
        """Mount a layer that is mounted nowhere; a mapping that is left from before will do if it suits."""
        if idle and not sealed and busy.stays_in_use(idle.device, busy.LIVE_SECONDS):
            # A container may have its view: a second one on the same directories would spoil both.
            raise self._busy(layer, idle)
        if idle and (sealed or (not idle.read_only and idle.exclusive == exclusive)):
            try:
                self._mount(layer, idle, write=write)
                return idle
            except command.CommandTimeout:
                raise
            except command.CommandError as error:
                # Its device may have gone meanwhile (rbd-nbd killed): a new one tells.
                log.warning("mapping layer %s anew: %s", layer, error)
        if idle:
            self._unmap(layer, idle)
        if sealed:
            with contextlib.ExitStack() as mine:
                entry = self._map(layer, mine, read_only=True)
                if self._mount_clean(layer, entry):
                    undo.push(mine.pop_all())
                    undo.callback(self._unmount, layer, entry)
                    return entry
        entry = self._map(layer, undo, read_only=False, exclusive=exclusive)
        self._mount(layer, entry, write=write)
        undo.callback(self._unmount, layer, entry)
        return entry

    def _mount_clean(self, layer: str, entry: _Entry) -> bool:
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

    def _map(self, layer: str, undo: contextlib.ExitStack, *, read_only: bool, exclusive: bool = True) -> _Entry:
        mounts.make_directory(self.directory(layer))
        undo.callback(self._remove_unless_mapped, layer)
        began = time.monotonic()
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
        entry = _Entry(device, read_only, exclusive, cost=time.monotonic() - began)
        self._entries[layer] = entry

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
        with kernel_log.Log() as messages:
            try:
                return self._pool.map(image, read_only=read_only, exclusive=exclusive)
            except rbdcli.RbdError as error:
                said = messages.about("rbd", "libceph", "nbd")
                raise error.explained(said and f"kernel: {said}") from None

    def _look_again(self, layer: str, entry: _Entry) -> None:
        """After a time-out: learn from the mount table what was done, and end a mount that nobody was told of."""
        if not entry.doubtful:
            return
        mounted = mounts.at(self.point(layer))
        if mounted and not entry.mounted:
            busy.unmount(self.point(layer), self._pool.timeout)
        elif mounted:
            entry.writable = not mounted.read_only
        elif entry.mounted:
            self._not_mounted(layer, entry)
        entry.doubtful = False

    def _mount(self, layer: str, entry: _Entry, *, write: bool) -> None:
        self.refuse_if_ended(layer)
        point, timeout = self.point(layer), self._pool.timeout
        mounts.make_directory(point)
        self._link(layer)
        with busy.doubting(entry):
            mounts.mount(self._fs, entry.device, point, self._options, read_only=not write, timeout=timeout)
        mounts.limit_retries(self._fs, entry.device, timeout)
        entry.mounted, entry.writable, entry.ending = True, write, False
        entry.tidy = entry.tidy and not write

    def _remount(self, layer: str, entry: _Entry, *, read_only: bool) -> None:
        with busy.doubting(entry):
            busy.remount(self.point(layer), read_only=read_only, timeout=self._pool.timeout)
        entry.writable = not read_only
        entry.tidy = entry.tidy and read_only

    def _unmount(self, layer: str, entry: _Entry) -> None:
        if entry.flushing:
            # It is our own thread that has it open, and hangs in the kernel.
            raise deadline.Overdue(f"layer {layer}: the cluster has not taken yet what was written to it")
        try:
            busy.unmount(self.point(layer), self._pool.timeout)
        except command.CommandTimeout:
            entry.doubtful = entry.ending = True
            raise
        self._not_mounted(layer, entry)

    def _not_mounted(self, layer: str, entry: _Entry) -> None:
        entry.mounted = entry.writable = False
        mounts.remove_point(self.point(layer))

    def _unmap(self, layer: str, entry: _Entry) -> None:
        # Until it is unmapped it is one of ours, whatever goes wrong.
        self._entries[layer] = entry
        for _ in busy.until_free():
            if not mounts.in_use(entry.device) and self._unmap_device(layer, entry.device):
                break
        else:
            if rbdcli.Mapping(self._images.image(layer), entry.device) in self._pool.mappings():
                raise self._busy(layer, entry)
            log.error("layer %s: its device %s vanished, and is another image's now", layer, entry.device)
        self._entries.pop(layer, None)
        self.remove_directories(layer)

    def _busy(self, layer: str, entry: _Entry) -> LayerBusy:
        """Say who has the device of a layer, and doubt what is mounted of it.

        A mount that was killed and hung in the kernel, ours or of an earlier life, may come to its end yet.
        """
        entry.doubtful = True
        try:
            held = elsewhere.viewed_by(self.source(layer))
            said = "; ".join(held) or holders.of_device(mounts.device_number(entry.device))
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

    # -- directories and links ---------------------------------------------------------------

    def short(self, layer: str) -> str:
        """Return the name of a layer's link."""
        image = "/".join((self._pool.name, self._pool.namespace, self._images.image(layer)))
        return base64.b32encode(hashlib.sha256(image.encode()).digest())[:SHORT].decode().lower()

    def source(self, layer: str) -> str:
        """Return what mount tables, and `df`, call a layer's view: the same on every host, and no other one's."""
        return f"ceph-{self.short(layer)}"

    def _link(self, layer: str) -> None:
        mounts.make_directory(self.links)
        target = os.path.join("..", os.path.basename(self.root), layer, POINT, layer_state.ROOT)
        path = os.path.join(self.links, self.short(layer))
        with contextlib.suppress(FileExistsError):
            os.symlink(target, path)
        if os.readlink(path) != target:
            raise mounts.MountError(f"{path} is the link of another layer than {layer}")

    def _remove_unless_mapped(self, layer: str) -> None:
        if layer not in self._entries:
            self.remove_directories(layer)

    def remove_directories(self, layer: str) -> None:
        """Remove what stands for a mapped layer on this host; what is noted of a removed one stays. Raises OSError."""
        top = self.directory(layer)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.links, self.short(layer)))
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(top)
            for name in names:
                if name != REMOVED:
                    os.rmdir(os.path.join(top, name))
            if REMOVED not in names:
                os.rmdir(top)
