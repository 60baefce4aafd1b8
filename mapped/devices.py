"""The devices of layers on this host: each image is mapped once, and unmapped when nobody needs it.

The directory of a layer (paths.py) is made before its image is mapped and goes after it is unmapped, so that what a
crash left can be told from the host alone. What is known of a mapped layer is in one record, `MappedLayer`: it is made
and dropped here; file_systems.py says in it what is mounted, and for whom.

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
    """A mapped layer. `read_only`: its device; `writable`: its mount.

    `exclusive`: nobody else may write to it, nor may it grow, as far as we know.
    `finished`: nobody writes to the layer any more.
    `doubtful`: a mount or unmount ran into its deadline, and may have been done later all the same, or somebody has the
    device and it is not known who.
    `tidy`: what the last mount stored was given back, as far as that can be done.
    `flushing`: a user has left, and what was written is still being written out, longer than that user could wait.
    `ending`: to unmount it hangs in the kernel, which writes out what is left.
    `writers`: the users for whom it is writable.
    `cost`: the seconds that it took to map it; 0 if that was not by us.
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
    """The mapped layers of one home."""

    def __init__(self, home: Home) -> None:
        self._pool, self._paths, self._layers = home.pool, home.paths, home.layers
        self._mapped: dict[str, MappedLayer] = {}
        # Of these a map from before our start hangs in the kernel, and may come to its end yet.
        self._unfinished: set[str] = set()

    def get(self, layer: str) -> MappedLayer | None:
        """Return the record of a layer, if it is mapped."""
        return self._mapped.get(layer)

    def device(self, layer: str) -> str | None:
        """Return the block device of a mapped layer."""
        entry = self._mapped.get(layer)
        return entry.device if entry else None

    def mapped(self) -> list[str]:
        """Name the mapped layers."""
        return list(self._mapped)

    def unused(self) -> list[str]:
        """Name the layers that are mapped for nobody, or may be."""
        return [*self._unfinished, *(layer for layer, entry in list(self._mapped.items()) if not entry.users)]

    # -- map and unmap -----------------------------------------------------------------------

    def map(self, layer: str, undo: contextlib.ExitStack, *, read_only: bool, exclusive: bool = True) -> MappedLayer:
        """Map the image of a layer; `undo` unmaps it again. On failure nothing stays behind.

        Raises rbdcli.ImageMissing, rbdcli.ImageLocked, command.CommandError, LayerBusy.
        """
        mounts.make_directory(self._paths.directory(layer))
        undo.callback(self._remove_unless_mapped, layer)
        began = time.monotonic()
        try:
            device = self._map_device(self._layers.image(layer), read_only=read_only, exclusive=exclusive)
        except command.CommandTimeout:
            # The kernel may have done it all the same. If the list does not answer either, the
            # directory stays, and the next start finds the mapping by it.
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
                # Why it is unmapped is worth more to the caller; who needs the layer next tries again.
                log.error("layer %s stays mapped: %s", layer, failure)

        undo.push(undone)
        return entry

    def unmap(self, layer: str) -> None:
        """Unmap a layer that is not mounted. Raises LayerBusy if somebody holds its device, command.CommandError."""
        entry = self._mapped.get(layer)
        if entry is not None:
            self._unmap(layer, entry)

    def _unmap(self, layer: str, entry: MappedLayer) -> None:
        # Until it is unmapped it is one of ours, whatever goes wrong.
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
        """Unmap a device, false while somebody holds it; one that vanished by itself is unmapped."""
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
                said = messages.about("rbd", "libceph", "nbd")
                raise error.explained(said and f"kernel: {said}") from None

    def _remove_unless_mapped(self, layer: str) -> None:
        if layer not in self._mapped:
            self._paths.remove(layer)

    # -- who else has it ---------------------------------------------------------------------

    def is_in_use(self, layer: str) -> bool:
        """Tell whether a mapped layer's device is in use."""
        entry = self._mapped.get(layer)
        return entry is not None and mounts.in_use(entry.device)

    def is_held(self, layer: str) -> bool:
        """Tell whether any process sees a layer, or its view, mounted; else the kernel may be at work with it."""
        entry = self._mapped.get(layer)
        if entry is None or not mounts.in_use(entry.device):
            return False
        return unmounting.is_mounted_anywhere(entry.device) or bool(elsewhere.viewed_by(self._paths.source(layer)))

    def is_written_back(self, layer: str) -> bool:
        """Tell whether nobody has a layer mounted, but the kernel is not done with what was written to it."""
        entry = self._mapped.get(layer)
        if entry is None or entry.read_only or (entry.finished and not entry.ending):
            return False
        return mounts.in_use(entry.device) and not self.is_held(layer)

    def refuse_if_held(self, layer: str) -> None:
        """Raise LayerBusy if somebody still has a layer mounted that we have not, or no more."""
        entry = self._mapped.get(layer)
        if entry and not entry.mounted and unmounting.stays_in_use(entry.device) and self.is_held(layer):
            raise self.busy(layer, entry)

    def refuse_if_viewed(self, layer: str) -> None:
        """Raise LayerBusy if somebody has a view of a layer of which we have none: a second one would spoil both."""
        held: list[str] = []
        for _ in unmounting.until_free(unmounting.LIVE_SECONDS):
            held = elsewhere.viewed_by(self._paths.source(layer))
            if not held:
                return
        raise LayerBusy(f"layer {layer}: {'; '.join(held)}")

    def busy(self, layer: str, entry: MappedLayer) -> LayerBusy:
        """Say who has the device of a layer, and doubt what is mounted of it.

        A mount that was killed and hung in the kernel, ours or of an earlier life, may come to its end yet.
        """
        entry.doubtful = True
        try:
            held = elsewhere.viewed_by(self._paths.source(layer))
            said = "; ".join(held) or holders.of_device(mounts.device_number(entry.device))
        except OSError as error:
            said = f"now it is gone ({error.strerror})"
        return LayerBusy(f"layer {layer}: {entry.device} cannot be unmapped: {said}")

    # -- from before -------------------------------------------------------------------------

    def by_layer(self, layers: Iterable[str]) -> dict[str, list[str]]:
        """Return the devices that the images of these layers are mapped as, whoever mapped them."""
        layer_of = {self._layers.image(layer): layer for layer in layers}
        found: dict[str, list[str]] = {}
        for mapping in self._pool.mappings() if layer_of else ():
            if mapping.image in layer_of:
                found.setdefault(layer_of[mapping.image], []).append(mapping.device)
        return found

    def learn(self, layer: str, entry: MappedLayer | None, devices: Iterable[str]) -> None:
        """Remember what an earlier life of this process had mapped of a layer, and unmap what it has besides that.

        A map that timed out may have been done all the same. Raises command.CommandError.
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
        """End what maps these layers for an earlier life of this process, and remember what hangs in the kernel."""
        images = {self._layers.image(layer): layer for layer in layers}
        self._unfinished = {images[image] for image in former_maps.end_maps(self._pool, images)}

    def unmap_unfinished(self, layer: str) -> None:
        """Unmap what a map from before our start came to, if it is over now. Raises LayerBusy while it is not."""
        if layer not in self._unfinished:
            return
        if former_maps.maps(self._pool, {self._layers.image(layer)}):
            raise LayerBusy(f"layer {layer}: a command that maps it hangs in the kernel, from before this start")
        self._unmap_leftover(layer)
        self._unfinished.discard(layer)

    def reclaim(self, layer: str) -> bool:
        """Unmap what this host has mapped of a layer for a home that is gone; tell whether there was such.

        A managed plugin was removed and made anew. Another driver's home is there, and so is the driver, even while it
        has just mapped and not mounted it yet. Raises LayerBusy.
        """
        if not self._mappings(layer) or not self._layers.is_abandoned(layer):
            return False
        try:
            self._unmap_leftover(layer)
        except BaseException:
            # Another driver of this host is at work with it. It ends that mapping, not we: remembered as ours,
            # its device could by then be another image's.
            self._mapped.pop(layer, None)
            raise
        return True

    def _unmap_leftover(self, layer: str) -> None:
        """A directory without a mount: the image may be mapped all the same."""
        for mapping in self._mappings(layer):
            log.warning("unmapping %s from %s, left behind by a crash", mapping.image, mapping.device)
            self._unmap(layer, MappedLayer(mapping.device))
        self._paths.remove(layer)

    def _mappings(self, layer: str) -> Sequence[rbdcli.Mapping]:
        return [item for item in self._pool.mappings() if item.image == self._layers.image(layer)]
