"""The images of a pool as layers: how they are made and removed, their owners, and what is below each.

Each is a clone of the base image's one snapshot, so that an image holds only what its layer brought. The layer of a
container is a copy of its init layer (`ID-init`), of which Docker makes one for each container: so a container holds
one device of its own, and not two.

Ceph holds everything that must be remembered. What stands here in memory is a cache.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import rbdcli
from cluster import rados_objects
from cluster.owner import Owner
from host import command
from host.failure import Failure
from host.locks import Locks
from images.family import Family
from images.names import BASE, Names
from images.options import Options, format_size
from images.record import KEY, Record
from images.trash import Trash, never

log = logging.getLogger("layers")

BASE_SNAPSHOT = "empty"
# In the image-meta of an image that was taken over from another host. The value is the image's own name: copies inherit
# the key, but have another name, so they do not count as taken over.
TAKEN_KEY = "docker_graph_driver.taken_over"
# Bytes. What is written is stored in such pieces; see HACKING.md.
OBJECT_SIZE = 256 << 10
INIT_SUFFIX = "-init"
# After so many deleted objects it is asked whether to give up.
EMPTY_AT_ONCE = 100


class LayerError(Failure):
    """A layer cannot be used, made or removed. The text is one line that says why."""


class LayerRefused(LayerError):
    """It is of the caller's making: the layer is not there or another host's, or takes no such call as it is."""

    is_refusal = True


@dataclass(frozen=True)
class Layer:
    """What is known of a layer's image: its size in bytes, and the pool of its content ("": the image's own pool)."""

    size: int
    data_pool: str = ""


class Layers:
    """The layers of one pool, namespace and image prefix. The caller holds the locks of the layers named in a call.

    Each method that asks Ceph raises command.CommandError if Ceph fails or does not answer, and what else it names.
    """

    def __init__(self, pool: rbdcli.Pool, options: Options, home: str) -> None:
        self.pool = pool
        self._options = options
        self._owner = Owner.here(home)
        self._names = Names(options.imageprefix)
        self.trash = Trash(pool, self._names)
        self._features = rbdcli.features(options.devicetype)
        # Caches of what Ceph knows: images, and what is below a layer.
        self._known: dict[str, Layer] = {}
        self._parents: dict[str, tuple[str, ...]] = {}
        self._family = Family(self.all, self.parents_if_there)
        # The layers that belong to this host, and when Ceph was asked for that, on the monotonic clock.
        self._ours: dict[str, float] = {}
        # The shared layers that may be removed, though their records say otherwise.
        self._let_go: set[str] = set()
        # A record is read and written anew.
        self._records = Locks()

    def image(self, layer: str) -> str:
        """Return the image name of a layer."""
        return self._names.image(layer)

    def layer(self, image: str) -> str:
        """Return the layer of an image of this prefix."""
        return self._names.layer(image)

    def describe(self, layer: str) -> Layer:
        """Return what is known of a layer's image. Ceph is asked once. Raises LayerError if there is no image."""
        if layer not in self._known:
            try:
                info = self.pool.info(self.image(layer))
            except rbdcli.ImageMissing:
                if layer == BASE:
                    raise LayerError(self._base_missing()) from None
                raise LayerRefused(f"layer {layer} does not exist: no image {self.image(layer)}") from None
            self._known[layer] = Layer(info.size, info.data_pool)
        return self._known[layer]

    def exists(self, layer: str) -> bool:
        """Ask Ceph whether a layer has an image."""
        try:
            self.pool.info(self.image(layer))
        except rbdcli.ImageMissing:
            return False
        return True

    def images(self) -> list[str]:
        """Name the images of the pool that have this prefix, the base image among them."""
        names = self.pool.list()
        return self._names.ours(names, names)

    def count(self) -> int:
        """Count the images of this prefix, the base image not among them."""
        return len(self.all())

    def all(self) -> list[str]:
        """Name all layers of this prefix."""
        return self.among(self.images())

    def among(self, images: Iterable[str]) -> list[str]:
        """Name the layers of some images of this prefix; base images, whole or half made, are left out."""
        return self._names.layers(images)

    # -- what is below a layer, and on it -----------------------------------------------------

    def parents(self, layer: str) -> tuple[str, ...]:
        """Return what is below a layer, nearest first. Ceph is asked once. Raises LayerError, rbdcli.ImageMissing."""
        if layer not in self._parents:
            # `docker inspect` asks for the parents, also while the pool is full.
            record = self._record_in_full_pool(layer)
            if record is None:
                raise LayerError(
                    f"layer {layer} was never made to its end: {self.image(layer)} has no {KEY}; remove it"
                )
            self._parents[layer] = record.parents
        return self._parents[layer]

    def record(self, layer: str) -> Record | None:
        """Return the record in the metadata of a layer's image, if it has one. Raises LayerError, rbdcli.ImageMissing.

        LayerError: the record cannot be read.
        """
        return self._parse(layer, self.pool.metadata(self.image(layer)).get(KEY, ""))

    def _parse(self, layer: str, text: str) -> Record | None:
        try:
            return Record.parse(text)
        except ValueError as error:
            raise LayerError(
                f"layer {layer}: {error}; what is below it is not known, so nothing is removed; if nobody needs it: "
                f"rbd rm {self.image(layer)}"
            ) from None

    def needing(self, layer: str) -> list[str]:
        """Name the layers of the pool that stand on `layer`. Raises LayerError if the record of any cannot be read."""
        return self._family.needing(layer)

    def known_children(self, layer: str) -> list[str]:
        """Name the layers that stand on `layer` directly, as far as that is known without asking Ceph."""
        return self._family.known_children(layer)

    def parents_if_there(self, layer: str) -> tuple[str, ...] | None:
        """Return what is below a layer; None if the layer is gone, or was never made to its end. Raises LayerError.

        A full pool answers this, too: what fills it must be able to go.
        """
        try:
            record = self._record_in_full_pool(layer)
        except rbdcli.ImageMissing:
            return None
        return record.parents if record else None

    # -- whose a layer is --------------------------------------------------------------------

    def owner(self) -> Owner:
        """Return this host and home, as they stand in the metadata of their layers."""
        return self._owner

    def scratch(self, owner: Owner | None = None) -> str:
        """Return the name of a base image that an owner is making, by default this host and home."""
        return f"{self.image(BASE)}.{(owner or self._owner).digest[:12]}"

    def holder(self, layer: str) -> str:
        """Say who has a layer that cannot be mapped here, and when it was last written, for an error message.

        Raises LayerError, rbdcli.ImageMissing.
        """
        image = self.image(layer)
        record = self.record(layer)
        owner = record.owner if record else Owner("unknown", "", "")
        addresses = ", ".join(self.pool.watchers(image)) or "no address"
        locks = ", ".join(f"{lock.locker} at {lock.address}" for lock in self.pool.locks(image)) or "nobody"
        written = self.pool.written(image) or "an unknown time"
        whose = f"{owner.seen_from(self._owner)} {owner.home}".strip()
        return f"its owner is {whose}; it is open at {addresses}, locked by {locks}, last written at {written}"

    def share(self, layer: str, snapshot: Mapping[str, object] | None = None) -> None:
        """Let a layer of this host belong to all hosts of the pool, for good. It is finished, and nobody writes to it.

        `snapshot`: the note of its snapshot, if that is known better by now.

        It is shared before it is offered (cluster/shared_layers.py): a layer that is shared and in no list is nobody's.
        A driver of before takes it for that of the host that made it. Raises LayerError, rbdcli.ImageMissing.
        """

        def shared(record: Record | None) -> Record:
            if record is None:
                raise LayerError(f"layer {layer} was never made to its end: {self.image(layer)} has no {KEY}")
            self._refuse_stranger(layer, record)
            return replace(record, shared=True, snapshot=snapshot or record.snapshot)

        self._rewrite(layer, shared)

    def own(self, layer: str) -> None:
        """Let a layer that `share` was called for belong to this host alone. Nobody else uses it, nor ever will.

        Either nobody was told of it, or its deletion was begun (SharedLayers.begin_delete). Raises LayerError,
        rbdcli.ImageMissing.
        """
        self._rewrite(layer, lambda old: replace(old, owner=self._owner, shared=False) if old and old.shared else old)
        self._ours.pop(layer, None)

    def note(self, layer: str, current: Callable[[], Mapping[str, object]]) -> None:
        """Write for which snapshot a layer that this host made stands now, as `current` tells.

        `remove` waits for that, and `current` raises an error once the layer is to be removed. Raises what `current`
        does, LayerError, rbdcli.ImageMissing.
        """
        self._rewrite(layer, lambda old: replace(old, snapshot=current()) if old else None)

    def _rewrite(self, layer: str, change: Callable[[Record | None], Record | None]) -> None:
        with self._records.hold(layer):
            image_id, record = self._stored(layer)
            changed = change(record)
            if changed is not None and changed != record:
                # By the header: as long as what stands on it is used, it may be mapped exclusively.
                rados_objects.set_metadata(self.pool, image_id, KEY, str(changed))

    def let_go(self, layer: str) -> None:
        """Let a shared layer be removed by this host, as `own` does, where a full pool takes no new record of it.

        This process alone knows that. If it ends before the layer has gone, that is in no list, and nobody's.
        """
        self._let_go.add(layer)

    def is_shared(self, layer: str) -> bool:
        """Tell whether a layer belongs to all hosts of the pool. Raises LayerError, rbdcli.ImageMissing."""
        record = self.record(layer)
        return record is not None and record.shared

    def check_owner(self, layer: str, *, lease: float) -> None:
        """Raise LayerError if a layer belongs to another host alone, and rbdcli.ImageMissing if there is none.

        Ceph is asked unless its last answer is younger than `lease` seconds.
        """
        asked = self._ours.get(layer)
        if asked is not None and time.monotonic() - asked < lease:
            return
        began = time.monotonic()
        record = self.record(layer)
        self._refuse_stranger(layer, record)
        self._ours[layer] = began
        if record:
            # The caller will ask for the parents next.
            self._parents[layer] = record.parents

    def check_owner_of_removed(self, layer: str) -> None:
        """Do what `check_owner` does in a way that a full pool answers, too. It takes one command more.

        Raises LayerError for a shared layer as well: one host removes it for itself, and others may use it.
        """
        record = self._record_in_full_pool(layer)
        if record and record.shared and layer not in self._let_go:
            raise LayerRefused(f"layer {layer} is shared by all hosts; it goes once none of them uses it")
        self._refuse_stranger(layer, record)

    def _record_in_full_pool(self, layer: str) -> Record | None:
        return self._stored(layer)[1]

    def _stored(self, layer: str) -> tuple[str, Record | None]:
        """Return the id of a layer's image, and its record as it stands in the image's header."""
        image_id = self.pool.data(self.image(layer)).image_id
        return image_id, self._parse(layer, rados_objects.metadata(self.pool, image_id, KEY) or "")

    def _refuse_stranger(self, layer: str, record: Record | None) -> None:
        if record is None or record.shared or self._is_of_this_host(record.owner):
            return
        owner = record.owner
        host = owner.seen_from(self._owner)
        raise LayerRefused(
            f"layer {layer} belongs to host {host} ({owner.home}); if that host is dead, or "
            f"is this one by a former name: docker_graph_driver.py takeover --host {host}"
        )

    def _is_of_this_host(self, owner: Owner) -> bool:
        """Tell whether an owner is this host, which may have had another name."""
        if not owner.is_same_host(self._owner):
            return False
        if owner.host == self._owner.host:
            return True
        # Our machine and home under another name: our former name, unless it is a clone that lives.
        name = owner.object(self._options.imageprefix)
        return owner.home == self._owner.home and not rados_objects.watching(self.pool, name)

    def is_abandoned(self, layer: str) -> bool:
        """Tell whether we may unmap what this host has mapped of a layer: the layer is ours, or its home is gone.

        Of a shared layer nobody can tell for which home it is mapped. A full pool answers this, too. Raises LayerError,
        rbdcli.ImageMissing.
        """
        record = self._record_in_full_pool(layer)
        if record is None or record.shared:
            return False
        owner = record.owner
        if owner.is_same(self._owner):
            return True
        return owner.is_same_host(self._owner) and not os.path.lexists(os.path.join(owner.home, "mnt", layer))

    # -- create and remove -------------------------------------------------------------------

    def create(
        self, layer: str, parent: str | None, size: int | None, snapshot: Mapping[str, object] | None = None
    ) -> bool:
        """Make the image of a new layer on `parent` (None: on nothing) with at least `size` bytes.

        The parent is finished, or an init layer, of which the image of its container is a copy. `snapshot`: the note of
        the snapshot for which the layer stands. Tell whether the file system in it is smaller than the image. On
        failure the image is deleted; if that fails, too, it is left behind and logged. Raises LayerError.
        """
        copied = parent if parent and parent.endswith(INIT_SUFFIX) else None
        origin = self.describe(copied or BASE)
        if parent:
            # The parent must belong to us, too. This learns its parents.
            self.check_owner(parent, lease=float("inf"))
        parents = () if parent is None else self.parents(parent) if copied else (parent, *self.parents(parent))
        wanted = size or (origin.size if copied else max(origin.size, self._options.basesize))
        if wanted < origin.size:
            raise LayerRefused(
                f"layer {layer}: size {format_size(wanted)} is smaller than {format_size(origin.size)}, which its file "
                f"system has at least; ask for at least that"
            )
        with contextlib.ExitStack() as undo:
            self._make(layer, copied, origin, undo)
            if not copied:
                record = Record(self._owner, parents, snapshot=snapshot or {})
                self.pool.set_metadata(self.image(layer), KEY, str(record))
            if wanted > origin.size:
                self.pool.resize(self.image(layer), wanted)
            undo.pop_all()
        self._known[layer] = replace(origin, size=wanted)
        self._parents[layer] = parents
        self._family.add(layer, parents)
        self._ours[layer] = time.monotonic()
        return wanted > origin.size

    def grow(self, layer: str, size: int) -> None:
        """Grow a layer's image to `size` bytes. Raises LayerError, rbdcli.ImageLocked: it is mapped exclusively."""
        self.pool.resize(self.image(layer), size)
        self._known[layer] = replace(self.describe(layer), size=size)

    def remove(self, layer: str, give_up: Callable[[], bool] = never) -> None:
        """Delete a layer's image, as `delete` does, and forget the layer. Raises what `delete` raises."""
        with self._records.hold(layer):
            # Who writes to its header anew after that has asked whether it is to be removed.
            pass
        try:
            self.delete(self.image(layer), give_up)
        except rbdcli.ImageMissing:
            self._forget(layer)
            raise
        self._forget(layer)
        # Somebody may have listed it while it was being deleted.
        self._family.drop(layer)

    def undo(self, layer: str) -> None:
        """Delete the image of a layer that was just made, within the request's time. A failure is logged."""
        self._forget(layer)
        self._discard(self.image(layer))

    def delete(self, image: str, give_up: Callable[[], bool] = never) -> None:
        """Delete an image that nobody has mapped, and its snapshots. If it has clones, it goes with the last of them.

        Works in a full pool. Takes as long as there is progress, or until `give_up`: then it raises
        command.CommandGivenUp. Raises rbdcli.ImageBusy if somebody has the image mapped, rbdcli.ImageMissing,
        rbdcli.ImageHasChildren for a snapshot that cannot be deleted.
        """
        try:
            self.pool.remove_slowly(image, give_up)
        except rbdcli.ImageHasChildren:
            if not self.pool.remove_snapshots(image):
                raise
            self.delete(image, give_up)

    def empty(self, layer: str, give_up: Callable[[], bool] = never) -> None:
        """Delete the content of a removed layer's image, mapped or not, until `give_up`. The image itself stays.

        Works in a full pool, too. `rbd diff` names the base image's objects as well: their namesakes in this image do
        not exist, which is no failure. An image that has snapshots (an operator's) keeps its content, since clones of
        them may need it. Raises rbdcli.ImageMissing.
        """
        image = self.image(layer)
        if self.pool.snapshots(image):
            return
        data = self.pool.data(image)
        names = [f"{data.prefix}.{offset // data.object_size:016x}" for offset in self.pool.extents(image)]
        for at in range(0, len(names), EMPTY_AT_ONCE):
            if give_up():
                return
            rados_objects.delete(self.pool.beside(data.pool), names[at : at + EMPTY_AT_ONCE])

    def _make(self, layer: str, copied: str | None, origin: Layer, undo: contextlib.ExitStack) -> None:
        image = self.image(layer)
        try:
            with self._undone(image, undo):
                if copied:
                    self.pool.deep_copy(self.image(copied), image, OBJECT_SIZE, origin.data_pool)
                else:
                    self._clone_base(image, origin.data_pool)
        except rbdcli.ImageExists:
            raise LayerRefused(f"layer {layer} exists already: image {image}") from None
        except rbdcli.ImageMissing as error:
            self._forget(copied or BASE)
            if copied:
                raise LayerRefused(f"layer {layer}: its parent {copied} does not exist ({error.reason})") from None
            raise LayerError(f"layer {layer}: {self._base_missing()} ({error.reason})") from None

    def _clone_base(self, image: str, data_pool: str) -> None:
        snapshot = rbdcli.Parent(self.image(BASE), BASE_SNAPSHOT)
        try:
            self.pool.clone(snapshot, image, self._features, OBJECT_SIZE, data_pool)
        except rbdcli.ImageMissing:
            self.mend_base()
            self.pool.clone(snapshot, image, self._features, OBJECT_SIZE, data_pool)

    def mend_base(self) -> None:
        """Take the base image's snapshot anew that somebody has deleted (`rbd snap purge`).

        It is the same as before, since nobody ever wrote to that image. Another host may do this at the same time.
        """
        base = self.image(BASE)
        with contextlib.suppress(rbdcli.ImageExists):
            self.pool.snapshot(base, BASE_SNAPSHOT)
        log.warning("%s has lost its snapshot %s; it was taken anew", base, BASE_SNAPSHOT)

    def _base_missing(self) -> str:
        return f"image {self.image(BASE)} does not exist any more; restart dockerd, then it is made anew"

    @contextlib.contextmanager
    def _undone(self, image: str, undo: contextlib.ExitStack) -> Iterator[None]:
        """Make `image` within the `with` block; `undo` deletes it as far as it was made.

        After a timeout the image may have been made all the same. Nobody was told of it, so nobody will miss it.
        An image that existed before is not ours to delete.
        """
        try:
            yield
        except (rbdcli.ImageExists, rbdcli.ImageMissing):
            raise
        except command.CommandError:
            undo.callback(self._discard, image)
            raise
        undo.callback(self._discard, image)

    def _forget(self, layer: str) -> None:
        self._known.pop(layer, None)
        self._parents.pop(layer, None)
        self._family.drop(layer)
        self._ours.pop(layer, None)
        self._let_go.discard(layer)

    def _discard(self, image: str) -> None:
        """Delete an image that was being made, as far as it was made."""
        try:
            self.pool.remove(image)
        except rbdcli.ImageMissing:
            return
        except command.CommandError as error:
            # The error for which the image is deleted is worth more to the caller than this one.
            log.error("image %s is left behind: %s", image, error)
