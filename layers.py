"""The images of a pool as layers: a child of a parent, removal, whose a layer is.

    docker_image_base_image@depth0 <- docker_image_A@depth1 <- docker_image_B ...

A layer gets what its parent holds in one of three ways:

- clone: copy-on-write from the parent's one snapshot, which is taken for its first clone and shared by
  all. The name of the snapshot tells how many ancestors its image has, so that nobody walks the chain.
- copy of the parent's own objects, with the same grandparent: for init layers, of which Docker gives each
  container one (`ID-init`), and for parents that hold little and have no snapshot. Taking a snapshot
  costs 0.4 to 1 s, copying a few megabytes 0.1 s, and a copy makes the chain no longer.
- flat copy, without any ancestor, where a clone would have more of them than the kernel maps.

Ceph holds everything that must be remembered. What is kept here in memory is a cache.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import command
import objects
import rbdcli
from options import Options, format_size
from owner import Owner

log = logging.getLogger("layers")

BASE = "base_image"
# The base image has no ancestors.
BASE_SNAPSHOT = "depth0"
# What a container sees as `/` is this directory of the file system: the file system's own root has
# lost+found (ext4) and our notes.
ROOT_DIRECTORY = "rootfs"
# Whose a layer is (owner.py). Set where a chain begins; clones and copies inherit it.
OWNER_KEY = "docker_graph_driver.owner"
# An image that was taken over from another host: its own name, so that clones, which inherit it, are none.
TAKEN_KEY = "docker_graph_driver.taken_over"
# How an image came to the trash that somebody has removed: by `rbd rm`, not to its end, or since it had clones. What an
# operator moved there is none (Ceph, librbd/Types.h).
REMOVED_SOURCES = ("REMOVING", "USER_PARENT")
# The name of a base image, or of one that is being made; it tells the prefix.
_BASE_NAME = re.compile(rf"(.+)_{BASE}(?:\.[0-9a-f]{{12}})?")
# Copying a layer object by object is bound by their number, copy-up by their size; see HACKING.md.
OBJECT_SIZE = 256 << 10
INIT_SUFFIX = "-init"
# How many objects go between two looks whether to give up.
EMPTY_AT_ONCE = 100
# What a parent may hold to be copied. Each layer of an image stores its copy for good: 40 tiny layers on busybox store
# 40 MB with this limit, 130 with the other. Only the first container of an image is a copy, see Driver._let_go.
COPY_LIMIT, LEAF_COPY_LIMIT = 2 << 20, 8 << 20
# The kernel maps no image with more ancestors (drivers/block/rbd.c, RBD_MAX_PARENT_CHAIN_LEN).
MAX_ANCESTORS = 16


class LayerError(Exception):
    """A layer cannot be had, made or removed: one line that says why."""


@dataclass(frozen=True)
class Layer:
    """What is known of a layer: size of its image in bytes, number of ancestors, the snapshot that it is a clone of.

    `copied`: how many bytes of its own its image had when it was made; None if that was before our time.
    `data_pool`: the pool of its content, "" if that is the pool of the images.
    """

    size: int
    depth: int
    parent: rbdcli.Parent | None
    copied: int | None = None
    data_pool: str = ""


def _nobody() -> bool:
    return False


class Layers:
    """The layers of one pool, namespace and image prefix; the caller holds the locks of the layers named in a call."""

    def __init__(self, pool: rbdcli.Pool, options: Options, home: str) -> None:
        self.pool = pool
        self._options = options
        self._owner = Owner.here(home)
        self._features = rbdcli.features(options.devicetype)
        # Caches of what Ceph knows: layers, and those of them that have their snapshot.
        self._known: dict[str, Layer] = {}
        self._snapshotted = {BASE}
        # Whose snapshot timed out or was cut off: it may have been taken all the same.
        self._doubtful: set[str] = set()
        # When it was asked, on the monotonic clock, that a layer belongs to this host.
        self._ours: dict[str, float] = {}

    def image(self, layer: str) -> str:
        """Return the image name of a layer."""
        return f"{self._options.imageprefix}_{layer}"

    def describe(self, layer: str) -> Layer:
        """Say what is known of a layer, asking Ceph once. Raises LayerError if there is none."""
        if layer not in self._known:
            try:
                info = self.pool.info(self.image(layer))
            except rbdcli.ImageMissing:
                gone = f"layer {layer} does not exist: no image {self.image(layer)}"
                raise LayerError(gone if layer != BASE else self._base_missing()) from None
            self._known[layer] = Layer(info.size, _depth(info.parent), info.parent, data_pool=info.data_pool)
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
        ours = _OfPrefix(self._options.imageprefix, names)
        return [name for name in names if name in ours]

    def count(self) -> int:
        """Count the images of this prefix, the base image not among them."""
        return len([name for name in self.images() if not name.startswith(self.image(BASE))])

    def children(self, layer: str) -> list[str]:
        """Name clones of a layer: those that this process has met, or else all that Ceph knows. Copies are not told."""
        image, prefix = self.image(layer), self.image("")
        met = [child for child, known in list(self._known.items()) if known.parent and known.parent.image == image]
        if met:
            return met
        try:
            names = self.pool.children(rbdcli.Parent(image, f"depth{self.describe(layer).depth}"))
        except rbdcli.ImageMissing:
            return []
        return [name[len(prefix) :] for name in names if name.startswith(prefix)]

    def owner(self) -> Owner:
        """Return this host and home, as it stands in the metadata of its layers."""
        return self._owner

    def scratch(self, owner: Owner | None = None) -> str:
        """Return the name of a base image that an owner is making, by default this host and home."""
        return f"{self.image(BASE)}.{(owner or self._owner).digest[:12]}"

    def holder(self, layer: str) -> str:
        """Say who has a layer that cannot be mapped here, for an error message, and since when as far as Ceph tells."""
        image = self.image(layer)
        said = self.pool.metadata(image).get(OWNER_KEY, "unknown")
        owner = Owner.parse(said)
        addresses = ", ".join(self.pool.watchers(image)) or "no address"
        locks = ", ".join(f"{lock.locker} at {lock.address}" for lock in self.pool.locks(image)) or "nobody"
        written = self.pool.written(image) or "an unknown time"
        whose = f"{owner.seen_from(self._owner)} {owner.home}".strip()
        return f"its owner is {whose}; it is open at {addresses}, locked by {locks}, last written at {written}"

    def check_owner(self, layer: str, *, lease: float) -> None:
        """Raise LayerError if a layer belongs to another host, and rbdcli.ImageMissing if there is none.

        An answer that is younger than `lease` seconds will do.
        """
        asked = self._ours.get(layer)
        if asked is not None and time.monotonic() - asked < lease:
            return
        began = time.monotonic()
        self._refuse_stranger(layer, self.pool.metadata(self.image(layer)).get(OWNER_KEY, ""))
        self._ours[layer] = began

    def check_owner_of_removed(self, layer: str) -> None:
        """Do the same in a way that a full pool answers, too; it takes one command more."""
        self._refuse_stranger(layer, self._owner_in_full_pool(layer))

    def _owner_in_full_pool(self, layer: str) -> str:
        image_id = self.pool.data(self.image(layer)).image_id
        return objects.metadata(self.pool, image_id, OWNER_KEY) or ""

    def _refuse_stranger(self, layer: str, said: str) -> None:
        owner = Owner.parse(said)
        if not said or self._is_of_this_host(owner):
            return
        host = owner.seen_from(self._owner)
        raise LayerError(
            f"layer {layer} belongs to host {host} ({owner.home}); if that host is dead, or "
            f"is this one by a former name: docker_graph_driver.py takeover --host {host}"
        )

    def _is_of_this_host(self, owner: Owner) -> bool:
        """Tell whether an owner is this host, which may have had another name."""
        if not owner.is_same_host(self._owner):
            return False
        if owner.host == self._owner.host:
            return True
        # Our home under another name: our former one, unless it is a clone that lives.
        name = owner.object(self._options.imageprefix)
        return owner.home == self._owner.home and not objects.watching(self.pool, name)

    def is_abandoned(self, layer: str) -> bool:
        """Tell whether what this host has mapped of a layer may be taken by us: it is ours, or its home is gone.

        Answered in a full pool, too.
        """
        owner = Owner.parse(self._owner_in_full_pool(layer))
        if owner.is_same(self._owner):
            return True
        return owner.is_same_host(self._owner) and not os.path.lexists(os.path.join(owner.home, "mnt", layer))

    # -- create and remove -------------------------------------------------------------------

    def create(
        self,
        layer: str,
        parent: str | None,
        size: int | None,
        *,
        leaf: bool,
        written: int | None = None,
        let_go: Callable[[], bool] = _nobody,
    ) -> Layer:
        """Make the image of a new layer on `parent` (None: on the empty base image), grown to `size` bytes.

        A `leaf` is a container's layer: it will be nobody's parent but another leaf's. The parent must not
        be mounted writable; `written` is what was written to it since it was made, in bytes. `let_go` is
        called before its snapshot is taken, for which it must not be mapped; it tells whether it stays
        mapped all the same, since somebody reads it. On failure no image is left behind. Raises LayerError.
        """
        origin = self.describe(parent or BASE)
        if parent:
            # Its owner is the new layer's, too.
            self.check_owner(parent, lease=float("inf"))
        wanted = size or (max(origin.size, self._options.basesize) if parent is None else origin.size)
        if wanted < origin.size:
            raise LayerError(
                f"layer {layer}: size {format_size(wanted)} is smaller than its parent's {format_size(origin.size)}; "
                f"ask for at least that"
            )
        with contextlib.ExitStack() as undo:
            made = self._make(layer, parent or BASE, origin, undo, leaf=leaf, written=written, let_go=let_go)
            if parent is None:
                self.pool.set_metadata(self.image(layer), OWNER_KEY, str(self._owner))
            if wanted > origin.size:
                self.pool.resize(self.image(layer), wanted)
            undo.pop_all()
        self._known[layer] = replace(made, size=wanted)
        self._ours[layer] = time.monotonic()
        return self._known[layer]

    def grow(self, layer: str, size: int) -> None:
        """Let the image of a layer have `size` bytes; it is not mapped exclusively. Raises rbdcli.ImageLocked."""
        self.pool.resize(self.image(layer), size)
        self._known[layer] = replace(self.describe(layer), size=size)

    def is_large(self, layer: str, written: int | None) -> bool:
        """Tell whether children of a finished layer will be clones for sure; `written`: bytes since it was made."""
        known = self._known.get(layer)
        if known is None or known.copied is None or written is None:
            return False
        return known.copied + written > LEAF_COPY_LIMIT

    def is_prepared(self, layer: str) -> bool:
        """Tell whether a layer is known to have its snapshot."""
        return layer in self._snapshotted

    def prepare(self, layer: str) -> None:
        """Take the snapshot of a finished layer that nobody has mapped, so that its next child need not wait for it."""
        origin = self.describe(layer)
        if origin.depth < MAX_ANCESTORS:
            self._snapshot(layer, origin.depth)

    def remove(self, layer: str, give_up: Callable[[], bool] = _nobody) -> None:
        """Delete a layer's image, as `delete` does."""
        self._forget(layer)
        self.delete(self.image(layer), give_up)

    def undo(self, layer: str) -> None:
        """Delete the image of a layer that was just made, within the request's time; what cannot be is logged."""
        self._forget(layer)
        self._discard(self.image(layer))

    def delete(self, image: str, give_up: Callable[[], bool] = _nobody) -> None:
        """Delete an image that nobody has mapped, and its snapshots; one with clones goes with the last of them.

        Works in a full pool; takes as long as there is progress, or until `give_up`. Raises rbdcli.ImageBusy if
        somebody has it mapped, rbdcli.ImageMissing, rbdcli.ImageHasChildren for a snapshot that cannot be deleted.
        """
        try:
            self.pool.remove_slowly(image, give_up)
        except rbdcli.ImageHasChildren:
            if not self.pool.remove_snapshots(image):
                raise
            self.delete(image, give_up)

    def empty(self, layer: str, give_up: Callable[[], bool] = _nobody) -> None:
        """Delete the content of a removed layer's image, mapped or not, until `give_up`; the image stays.

        Works in a full pool, too. `rbd diff` names the ancestors' objects as well: to delete those in this image does
        nothing. One that has snapshots keeps its content, which its clones may need.
        """
        image = self.image(layer)
        if self.pool.snapshots(image):
            return
        data = self.pool.data(image)
        names = [f"{data.prefix}.{offset // data.object_size:016x}" for offset in self.pool.extents(image)]
        for at in range(0, len(names), EMPTY_AT_ONCE):
            if give_up():
                return
            objects.delete(self.pool.beside(data.pool), names[at : at + EMPTY_AT_ONCE])

    def trashed(self) -> list[rbdcli.Trashed]:
        """Return the images in the pool's trash that have our prefix, whoever moved them there."""
        found = [item for item in self.pool.trashed() if item.name.startswith(self.image(""))]
        ours = _OfPrefix(self._options.imageprefix, self.pool.list() if found else ())
        return [item for item in found if item.name in ours]

    def removed(self) -> list[rbdcli.Trashed]:
        """Return those of them that were removed: every driver of this prefix may delete them for all."""
        return [item for item in self.trashed() if item.source in REMOVED_SOURCES]

    def layer(self, image: str) -> str:
        """Return the layer of an image of this prefix."""
        return image[len(self.image("")) :]

    def delete_trashed(self, image_id: str, give_up: Callable[[], bool] = _nobody) -> bool:
        """Delete an image in the trash and its snapshots; tell whether it is gone now: one with clones waits for them.

        Raises rbdcli.RbdError if somebody is at work with it, or it was put there until a date.
        """
        try:
            self.pool.remove_trashed(image_id, give_up)
        except rbdcli.ImageHasChildren:
            return self.pool.remove_snapshots_of_trashed(image_id) > 0 and self.delete_trashed(image_id, give_up)
        except rbdcli.ImageMissing:
            pass
        return True

    def reap(self) -> None:
        """Delete what can be deleted of the trash now."""
        # A parent can go only after its children: begin anew as long as something went.
        while sum(self._reap(item.image_id) for item in self.removed()):
            pass

    def _reap(self, image_id: str) -> bool:
        try:
            return self.delete_trashed(image_id)
        except command.CommandError as error:
            log.info("%s stays in the trash for now: %s", image_id, error)
            return False

    def _make(
        self,
        layer: str,
        parent: str,
        origin: Layer,
        undo: contextlib.ExitStack,
        *,
        leaf: bool,
        written: int | None,
        let_go: Callable[[], bool],
    ) -> Layer:
        source, image = self.image(parent), self.image(layer)
        try:
            copy = self._to_copy(parent, origin, written, LEAF_COPY_LIMIT if leaf else COPY_LIMIT)
            if copy:
                return self._copy(source, image, copy, undo)
            if origin.depth >= (MAX_ANCESTORS if leaf else MAX_ANCESTORS - 1):
                with self._undone(image, undo):
                    self.pool.copy(source, image, self._features, OBJECT_SIZE, origin.data_pool)
                return replace(origin, depth=0, parent=None, copied=None)
            stays_mapped = parent not in self._snapshotted and let_go()
            try:
                snapshot = self._snapshot(parent, origin.depth)
            except rbdcli.ImageLocked:
                # Mapped exclusively, an image takes no snapshot. If a Diff of ours is what holds it, which may take
                # longer than Docker waits, or wait for this very layer, a copy of what nobody writes does as well.
                if not stays_mapped:
                    raise
                return self._copy(source, image, replace(origin, copied=None), undo)
            with self._undone(image, undo):
                self._clone(snapshot, image, origin.data_pool)
            return replace(origin, depth=origin.depth + 1, parent=snapshot, copied=0)
        except rbdcli.ImageExists:
            raise LayerError(f"layer {layer} exists already: image {image}") from None
        except rbdcli.ImageMissing as error:
            self._forget(parent)
            why = f"its parent {parent} does not exist" if parent != BASE else self._base_missing()
            raise LayerError(f"layer {layer}: {why} ({error.reason})") from None

    def _clone(self, snapshot: rbdcli.Parent, image: str, data_pool: str) -> None:
        try:
            self.pool.clone(snapshot, image, self._features, OBJECT_SIZE, data_pool)
        except rbdcli.ImageMissing:
            if snapshot.image != self.image(BASE):
                # The next call looks whether it has one.
                raise
            self.mend_base()
            self.pool.clone(snapshot, image, self._features, OBJECT_SIZE, data_pool)

    def mend_base(self) -> None:
        """Take the base image's snapshot that somebody has deleted (`rbd snap purge`): nobody ever wrote to that image.

        Another host may do the same.
        """
        base = self.image(BASE)
        with contextlib.suppress(rbdcli.ImageExists):
            self.pool.snapshot(base, BASE_SNAPSHOT)
        log.warning("%s has lost its snapshot %s; it was taken anew", base, BASE_SNAPSHOT)

    def _base_missing(self) -> str:
        return f"image {self.image(BASE)} does not exist any more; restart dockerd, then it is made anew"

    def _to_copy(self, parent: str, origin: Layer, written: int | None, limit: int) -> Layer | None:
        """Return what a copy of a parent will be; None if the parent's snapshot is to be cloned.

        What a layer holds is what it was made with and what was written to it since. For one from before our
        time Ceph is asked, which takes as long as the copy itself.
        """
        if parent in self._snapshotted:
            return None
        held = None if origin.copied is None or written is None or parent in self._doubtful else origin.copied + written
        if held is None and not parent.endswith(INIT_SUFFIX):
            usage = self.pool.usage(self.image(parent))
            self._doubtful.discard(parent)
            if usage.snapshots:
                # It may be an operator's, which a copy would get, too.
                if f"depth{origin.depth}" in usage.snapshots:
                    self._snapshotted.add(parent)
                return None
            held = usage.size
        if parent.endswith(INIT_SUFFIX) or (held is not None and held <= limit):
            return replace(origin, copied=held)
        return None

    def _copy(self, source: str, image: str, made: Layer, undo: contextlib.ExitStack) -> Layer:
        with self._undone(image, undo):
            self.pool.deep_copy(source, image, OBJECT_SIZE, made.data_pool)
        return made

    def _snapshot(self, parent: str, depth: int) -> rbdcli.Parent:
        """Return the snapshot that children of a layer share, taken if there is none."""
        snapshot = rbdcli.Parent(self.image(parent), f"depth{depth}")
        if parent not in self._snapshotted:
            try:
                self.pool.snapshot(snapshot.image, snapshot.snapshot)
            except rbdcli.ImageExists:
                # Another host has taken it since we looked, or we have, when it timed out.
                pass
            except (rbdcli.ImageMissing, rbdcli.ImageLocked):
                raise
            except command.CommandError:
                # It may have been taken all the same. A copy of the parent would get it, and take it for its own.
                self._doubtful.add(parent)
                raise
            self._snapshotted.add(parent)
        return snapshot

    @contextlib.contextmanager
    def _undone(self, image: str, undo: contextlib.ExitStack) -> Iterator[None]:
        """Make `image` within the `with` block, to be deleted by `undo` as far as it was made.

        What timed out may have been made all the same; nobody was told of it, so nobody will miss it.
        One that existed before is not ours to delete.
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
        self._ours.pop(layer, None)
        self._doubtful.discard(layer)
        if layer != BASE:
            self._snapshotted.discard(layer)

    def _discard(self, image: str) -> None:
        """Delete an image that was being made, as far as it was made."""
        try:
            self.pool.remove(image)
        except rbdcli.ImageMissing:
            return
        except command.CommandError as error:
            # The reason why it was being undone is worth more to the caller than this one.
            log.error("image %s is left behind: %s", image, error)


class _OfPrefix:
    """The names that are of a prefix. Where one prefix begins another, the longest that has a base image decides."""

    def __init__(self, prefix: str, existing: Iterable[str]) -> None:
        self._ours = f"{prefix}_"
        prefixes = (f"{found[1]}_" for name in existing if (found := _BASE_NAME.fullmatch(name)))
        self._longer = tuple(other for other in prefixes if other.startswith(self._ours) and other != self._ours)

    def __contains__(self, name: str) -> bool:
        return name.startswith(self._ours) and not name.startswith(self._longer)


def _depth(parent: rbdcli.Parent | None) -> int:
    """How many ancestors an image has, from the snapshot that it was cloned from."""
    if parent is None:
        return 0
    if not parent.snapshot.startswith("depth"):
        raise LayerError(f"image {parent.image}@{parent.snapshot} is not a snapshot of this driver's")
    return int(parent.snapshot[len("depth") :]) + 1
