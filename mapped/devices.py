"""The devices of layers on this host: each image is mapped once, and unmapped when nobody needs it.

The directory of a layer (paths.py) is made before its image is mapped, and removed after it is unmapped. So the host
alone tells what a crash left. All that is known of a mapped layer is in one `MappedLayer`. It is made and dropped here;
file_systems.py keeps in it what is mounted, and for whom.

The caller holds the layer's lock around each call.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import mounts
import rbdcli
from host import command, deadline, kernel_log
from mapped import elsewhere, former_maps, holders, unmounting
from mapped.home import Home
from mapped.unmounting import LayerBusy

log = logging.getLogger("devices")


@dataclass
class MappedLayer:
    """What is known of a mapped layer.

    `device`: the path of its block device.
    `read_only`: the device takes no writes.
    `exclusive`: as far as we know, no other host may write to the image, and it cannot grow.
    `mounted`: its file system is mounted.
    `writable`: that mount is writable.
    `finished`: nobody writes to the layer any more.
    `doubtful`: a mount or unmount ran into its deadline and may be done later, or somebody unknown has the device.
    `tidy`: the part of the log that the last mount cleared was given back, as far as possible.
    `flushing`: the last user has left, and its writes are still being written out in a thread.
    `ending`: its unmount hangs in the kernel, which writes out what is left.
    `cost`: how many seconds the map took; 0 if we did not map it.
    `writers`: the users for whom it is writable.
    `users`: how many uses each user has.
    """

    device: str
    read_only: bool = False
    exclusive: bool = True
    mounted: bool = False
    writable: bool = False
    finished: bool = False
    doubtful: bool = False
    tidy: bool = False
    flushing: bool = False
    ending: bool = False
    cost: float = 0.0
    writers: set[str] = field(default_factory=set)
    users: Counter[str] = field(default_factory=Counter)


class Devices:
    """The mapped layers of one home. It decides how an image is mapped, and whether it can be unmapped."""

    def __init__(self, home: Home) -> None:
        self._pool, self._paths, self._layers = home.pool, home.paths, home.layers
        self._mapped: dict[str, MappedLayer] = {}
        # The layers of which a map from before our start hangs in the kernel. It may still be done later.
        self._unfinished: set[str] = set()

    def get(self, layer: str) -> MappedLayer | None:
        """Return what is known of a layer, None if it is not mapped."""
        return self._mapped.get(layer)

    def device(self, layer: str) -> str | None:
        """Return the block device of a layer, None if it is not mapped."""
        entry = self._mapped.get(layer)
        return entry.device if entry else None

    def mapped(self) -> list[str]:
        """Name the mapped layers."""
        return list(self._mapped)

    def unused(self) -> list[str]:
        """Name the layers that are mapped and have no user, and those that a map from before may still map."""
        return [*self._unfinished, *(layer for layer, entry in list(self._mapped.items()) if not entry.users)]

    # -- map and unmap -----------------------------------------------------------------------

    def map(self, layer: str, undo: contextlib.ExitStack, *, read_only: bool, exclusive: bool = True) -> MappedLayer:
        """Map the image of a layer; `undo` unmaps it again.

        On failure nothing stays behind, but after command.CommandTimeout the image may be mapped: then the directory of
        the layer stays, too. Raises rbdcli.ImageMissing, rbdcli.ImageLocked, command.CommandError, LayerBusy, OSError;
        LayerError if the record of the image cannot be read.
        """
        mounts.make_directory(self._paths.directory(layer))
        undo.callback(self._remove_unless_mapped, layer)
        began = time.monotonic()
        try:
            device = self._map_device(self._layers.image(layer), read_only=read_only, exclusive=exclusive)
        except command.CommandTimeout:
            # The kernel may have mapped it all the same. If `rbd device list` does not answer either, the directory
            # stays, and by it the next start finds the mapping.
            undo.pop_all()
            self._unmap_leftover(layer)
            raise
        except rbdcli.ImageLocked:
            if not self.reclaim(layer):
                raise
            return self.map(layer, undo, read_only=read_only, exclusive=exclusive)
        if not read_only:
            mounts.merge_writes(device)
        entry = MappedLayer(device, read_only, exclusive, cost=time.monotonic() - began)
        self._mapped[layer] = entry

        def undone(_: object, error: BaseException | None, __: object) -> None:
            try:
                self._unmap(layer, entry)
            except (command.CommandError, LayerBusy, deadline.Overdue) as failure:
                if error is None:
                    raise
                # The error that led here is worth more to the caller. The next user of the layer tries again.
                log.error("layer %s stays mapped: %s", layer, failure)

        undo.push(undone)
        return entry

    def unmap(self, layer: str) -> None:
        """Unmap a layer that is not mounted. Do nothing if it is not mapped.

        On failure it stays mapped. Raises LayerBusy if somebody holds its device, command.CommandError,
        deadline.Overdue, OSError.
        """
        entry = self._mapped.get(layer)
        if entry is not None:
            self._unmap(layer, entry)

    def _unmap(self, layer: str, entry: MappedLayer) -> None:
        # Until the image is unmapped, the layer counts as mapped, whatever goes wrong.
        self._mapped[layer] = entry
        for _ in unmounting.until_free():
            if not mounts.in_use(entry.device) and self._unmap_device(layer, entry.device):
                break
        else:
            if rbdcli.Mapping(self._layers.image(layer), entry.device) in self._pool.mappings():
                raise self.busy(layer, entry)
            log.error("layer %s: its device %s vanished, and is another image's now", layer, entry.device)
        self._mapped.pop(layer, None)
        self._paths.remove(layer)

    def _unmap_device(self, layer: str, device: str) -> bool:
        """Unmap a device. Return False if somebody holds it, and True if it vanished by itself."""
        try:
            self._pool.unmap(device, self._layers.image(layer))
        except rbdcli.ImageBusy:
            return False
        except rbdcli.NotMapped as error:
            log.error("layer %s: its device %s vanished: %s", layer, device, error)
        return True

    def _map_device(self, image: str, *, read_only: bool, exclusive: bool) -> str:
        with kernel_log.Log() as messages:
            try:
                return self._pool.map(image, read_only=read_only, exclusive=exclusive)
            except rbdcli.RbdError as error:
                text = messages.about("rbd", "libceph", "nbd")
                raise error.explained(text and f"kernel: {text}") from None

    def _remove_unless_mapped(self, layer: str) -> None:
        if layer not in self._mapped:
            self._paths.remove(layer)

    # -- who else has it ---------------------------------------------------------------------

    def is_in_use(self, layer: str) -> bool:
        """Tell whether the device of a layer is mounted in any mount namespace; False if the layer is not mapped."""
        entry = self._mapped.get(layer)
        return entry is not None and mounts.in_use(entry.device)

    def is_held(self, layer: str) -> bool:
        """Tell whether any process has a layer, or its view, mounted. The kernel's own work does not count."""
        entry = self._mapped.get(layer)
        if entry is None or not mounts.in_use(entry.device):
            return False
        return unmounting.is_mounted_anywhere(entry.device) or bool(elsewhere.viewed_by(self._paths.source(layer)))

    def is_written_back(self, layer: str) -> bool:
        """Tell whether the kernel still writes back what was written to a layer, and nobody has the layer mounted."""
        entry = self._mapped.get(layer)
        if entry is None or entry.read_only or (entry.finished and not entry.ending):
            return False
        return mounts.in_use(entry.device) and not self.is_held(layer)

    def refuse_if_held(self, layer: str) -> None:
        """Raise LayerBusy if another process has a layer mounted, and we have not."""
        entry = self._mapped.get(layer)
        if entry and not entry.mounted and unmounting.stays_in_use(entry.device) and self.is_held(layer):
            raise self.busy(layer, entry)

    def refuse_if_viewed(self, layer: str) -> None:
        """Raise LayerBusy if somebody has a view of a layer, of which we have none: a second view would spoil both."""
        held: list[str] = []
        for _ in unmounting.until_free(unmounting.LIVE_SECONDS):
            held = elsewhere.viewed_by(self._paths.source(layer))
            if not held:
                return
        raise LayerBusy(f"layer {layer}: {'; '.join(held)}")

    def busy(self, layer: str, entry: MappedLayer) -> LayerBusy:
        """Return the error that says who has the device of a layer. From now on its mount is `doubtful`.

        A mount that was killed may hang in the kernel, from now or from before our start, and be done later.
        """
        entry.doubtful = True
        try:
            held = elsewhere.viewed_by(self._paths.source(layer))
            text = "; ".join(held) or holders.of_device(mounts.device_number(entry.device))
        except OSError as error:
            text = f"now it is gone ({error.strerror})"
        return LayerBusy(f"layer {layer}: {entry.device} cannot be unmapped: {text}")

    # -- from before -------------------------------------------------------------------------

    def by_layer(self, layers: Iterable[str]) -> dict[str, list[str]]:
        """Return the devices of the images of these layers, whoever mapped them. Raises command.CommandError."""
        layer_of = {self._layers.image(layer): layer for layer in layers}
        found: dict[str, list[str]] = {}
        for mapping in self._pool.mappings() if layer_of else ():
            if mapping.image in layer_of:
                found.setdefault(layer_of[mapping.image], []).append(mapping.device)
        return found

    def learn(self, layer: str, entry: MappedLayer | None, devices: Iterable[str]) -> None:
        """Remember how an earlier life of this process had mapped a layer. Unmap what else its image is mapped as.

        A map that timed out may have been done all the same, so there may be two devices. Raises command.CommandError,
        deadline.Overdue, OSError.
        """
        self._mapped.pop(layer, None)
        if entry is None:
            return
        self._mapped[layer] = entry
        for device in devices:
            if device != entry.device and not mounts.in_use(device):
                log.warning("layer %s was mapped twice: unmapping %s", layer, device)
                self._unmap_device(layer, device)

    def end_maps(self, layers: Iterable[str]) -> None:
        """Kill the commands of an earlier life of this process that map these layers. Remember those that hang."""
        images = {self._layers.image(layer): layer for layer in layers}
        self._unfinished = {images[image] for image in former_maps.end_maps(self._pool, images)}

    def unmap_unfinished(self, layer: str) -> None:
        """Unmap what a map from before our start has mapped, if that map is over now.

        Raises LayerBusy while it is not over; command.CommandError, OSError.
        """
        if layer not in self._unfinished:
            return
        if former_maps.maps(self._pool, {self._layers.image(layer)}):
            raise LayerBusy(f"layer {layer}: a command that maps it hangs in the kernel, from before this start")
        self._unmap_leftover(layer)
        self._unfinished.discard(layer)

    def reclaim(self, layer: str) -> bool:
        """Unmap a layer that this host has mapped for a home that is gone. Tell whether there was such a mapping.

        So it is after a managed plugin was removed and installed anew. If the home of another driver is there, that
        driver may be about to mount the layer, and the mapping stays. Raises LayerBusy, LayerError,
        command.CommandError, OSError.
        """
        if not self._mappings(layer) or not self._layers.is_abandoned(layer):
            return False
        try:
            self._unmap_leftover(layer)
        except BaseException:
            # Another driver of this host is at work with the layer, and will end that mapping itself. Remembered as
            # ours, its device could by then belong to another image.
            self._mapped.pop(layer, None)
            raise
        return True

    def _unmap_leftover(self, layer: str) -> None:
        """Unmap the image of a layer that has a directory and no mount: it may be mapped all the same."""
        for mapping in self._mappings(layer):
            log.warning("unmapping %s from %s, left behind by a crash", mapping.image, mapping.device)
            self._unmap(layer, MappedLayer(mapping.device))
        self._paths.remove(layer)

    def _mappings(self, layer: str) -> Sequence[rbdcli.Mapping]:
        return [item for item in self._pool.mappings() if item.image == self._layers.image(layer)]
