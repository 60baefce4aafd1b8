"""The `rbd` and `ceph` command lines: one method per verb; exit codes become exceptions.

The exit status of rbd is the errno of what went wrong (2 missing, 16 busy, 17 exists, 22 invalid,
39 has snapshots or children), so meaning is taken from it and never from the text of a message.
Every call names configuration, client, pool, namespace and image by options: a name can never be
read as `pool/image@snap` or as an option.

Where a command does not state a setting, librbd takes it from a ceph.conf, from the monitors (`ceph config set
client ...`) or from the pool (`rbd config pool set`). So every command that makes or removes an image states them all.
An option of the command's wins over all three. A configuration option on its command line (`--rbd-...`) wins over all
but the pool, for which see preconditions.py. (Seen on 16.2.15.)

One `rbd` command costs 20 to 40 ms; a snapshot costs up to a second, since the monitors gather
proposals for `paxos_propose_interval`.
"""

from __future__ import annotations

import calendar
import contextlib
import errno
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from host import command, deadline

# Format 2 needs no protected snapshots, and a parent may go to the trash before its children
# (man rbd, `--rbd-default-clone-format`); a fresh cluster would otherwise make format 1.
CLONE_FORMAT = ("--rbd-default-clone-format", "2")
# `rbd rm` moves an image to the trash, and deletes it from there (librbd/api/Image.cc, remove). By the first option an
# image with clones stays there; the second keeps `rbd rm` from leaving every image there.
REMOVAL = ("--rbd-move-parent-to-trash-on-remove=true", "--rbd-move-to-trash-on-remove=false")
# The share of its deadline in which a command must reach the cluster: then it fails with a message of its own, before
# the deadline kills it without one.
CONNECT_SHARE = 0.5
# A deletion prints each whole percent (tools/rbd/Utils.cc). One percent of an image of a terabyte takes minutes.
PERCENT_TIMEOUTS = 10


class RbdError(command.CommandError):
    """An rbd or ceph command failed."""


class ImageMissing(RbdError):
    """No such image or snapshot, in a pool that can be listed (ENOENT)."""


class PoolMissing(RbdError):
    """The pool or the namespace cannot be listed: nothing is known of its images, not even whether they are gone."""


class ImageExists(RbdError):
    """The name is taken (EEXIST)."""


class ImageBusy(RbdError):
    """Somebody maps or watches the image, or the device is open (EBUSY)."""


class NotMapped(RbdError):
    """The device is not mapped from that image: it was unmapped meanwhile, or went by itself (rbd-nbd killed)."""


class ImageHasChildren(RbdError):
    """The image has snapshots, or a snapshot has clones (ENOTEMPTY)."""


class ImageLocked(RbdError):
    """Another client holds the exclusive lock (EROFS)."""


_BY_ERRNO: dict[int, type[RbdError]] = {
    errno.ENOENT: ImageMissing,
    errno.EEXIST: ImageExists,
    errno.EBUSY: ImageBusy,
    errno.ENOTEMPTY: ImageHasChildren,
    errno.EROFS: ImageLocked,
}


class Parent(NamedTuple):
    """The snapshot that an image was cloned from."""

    image: str
    snapshot: str


class Info(NamedTuple):
    """What `rbd info` says of an image: its size in bytes, and the pool of its content ("": its own pool)."""

    size: int
    data_pool: str = ""


class Lock(NamedTuple):
    """One holder of an image's lock: the id of the lock, the id of the client, and the client's address."""

    lock_id: str
    locker: str
    address: str


class Data(NamedTuple):
    """Where an image's content lies: the image's id; how its objects' names begin, their size in bytes, their pool."""

    image_id: str
    prefix: str
    object_size: int
    pool: str


class Mapping(NamedTuple):
    """One line of `rbd device list`: an image of this pool and its block device."""

    image: str
    device: str


class Usage(NamedTuple):
    """What an image holds: its id, and the bytes of its own, snapshots included, counted in whole objects."""

    image_id: str
    size: int


class Trashed(NamedTuple):
    """One image in the trash of the pool.

    `source` is Ceph's word for who moved it there, `deleted_at` is in seconds since 1970.
    """

    image_id: str
    name: str
    source: str
    deleted_at: float


@dataclass(frozen=True)
class Pool:
    """A pool (and namespace) reached as one Ceph client; the methods run its commands.

    `timeout` (seconds) bounds each command. Every method raises RbdError or a subclass of it,
    command.CommandTimeout, or command.CommandMissing.
    """

    name: str
    namespace: str
    client: str
    configfile: str
    timeout: float
    device_type: str
    map_options: tuple[str, ...]

    def beside(self, name: str) -> Pool:
        """Return another pool of the cluster, with the same namespace."""
        return replace(self, name=name)

    # -- images ---------------------------------------------------------------------------

    def create(self, image: str, size: int, features: Collection[str], object_size: int, data_pool: str) -> None:
        """Make an empty image of `size` bytes, with its content in `data_pool` ("": this one). Raises ImageExists."""
        layout = (*_features(features), *self._layout(object_size, data_pool), "--image-format", "2")
        self._rbd("create", *self._image(image), *layout, "--size", f"{size}B")

    def clone(self, parent: Parent, image: str, features: Collection[str], object_size: int, data_pool: str) -> None:
        """Make `image` a copy-on-write clone of a snapshot. Raises ImageMissing (parent) or ImageExists."""
        source = (*self._image(parent.image), "--snap", parent.snapshot)
        layout = (*_features(features), *self._layout(object_size, data_pool))
        self._rbd("clone", *source, *self._destination(image), *layout, *CLONE_FORMAT)

    def deep_copy(self, source: str, image: str, object_size: int, data_pool: str) -> None:
        """Copy what `source` itself holds; the copy is a clone of the same parent. Raises ImageMissing or ImageExists.

        The copy gets the features of the source. Snapshots are copied too, so there should be none. Half a copy may be
        left behind on failure.
        """
        layout = self._layout(object_size, data_pool)
        self._rbd(
            "deep", "cp", *self._image(source), *self._destination(image), *layout, *CLONE_FORMAT, "--no-progress"
        )

    def rename(self, image: str, new_name: str) -> None:
        """Give an image another name. Raises ImageExists or ImageMissing; two at once to one name both succeed."""
        self._rbd("rename", *self._image(image), *self._destination(new_name))

    def resize(self, image: str, size: int) -> None:
        """Grow an image to `size` bytes; rbd refuses to shrink it. Raises ImageLocked if it is mapped exclusively."""
        self._rbd("resize", *self._image(image), "--size", f"{size}B", "--no-progress")

    def remove(self, image: str) -> None:
        """Delete an image within `timeout`. Raises ImageMissing, ImageBusy, ImageHasChildren: it has snapshots."""
        self._rbd("rm", *self._image(image), *REMOVAL, "--no-progress")

    def remove_slowly(self, image: str, give_up: Callable[[], bool]) -> None:
        """Delete an image, for as long as that makes progress, or until `give_up` says so: it may take hours.

        A deletion that was cut short goes on with the next call. An image that has clones, of snapshots that are
        deleted, goes to the trash instead, and from there with the last of them. Works in a full pool, if that has an
        object for its trash already (rados_objects.prepare_trash). Raises command.CommandGivenUp, and what `remove`
        raises.
        """
        try:
            self._rbd("rm", *self._image(image), *REMOVAL, give_up=give_up)
        except ImageMissing as error:
            # `rbd rm` ends with the same status if a full pool has no object for its trash.
            if image in self.list():
                raise RbdError(error.argv, error.status, error.reason) from None
            raise

    def info(self, image: str) -> Info:
        """Describe one image. Raises ImageMissing."""
        output = self._json("info", *self._image(image))
        return Info(int(output["size"]), str(output.get("data_pool") or ""))

    def data(self, image: str) -> Data:
        """Say where an image's content lies. Raises ImageMissing."""
        output = self._json("info", *self._image(image))
        prefix, pool = str(output["block_name_prefix"]), str(output.get("data_pool") or self.name)
        return Data(str(output["id"]), prefix, int(output["object_size"]), pool)

    def extents(self, image: str) -> Sequence[int]:
        """Return the offsets in bytes at which an image, or an ancestor, has an object. Raises ImageMissing."""
        return [int(item["offset"]) for item in self._json("diff", *self._image(image), "--whole-object")]

    def created(self, image: str) -> float:
        """Return when an image was made, by the cluster's clock, in seconds since 1970. Raises ImageMissing."""
        return _time(self._json("info", *self._image(image))["create_timestamp"])

    def written(self, image: str) -> str:
        """Return when an image was last written, in UTC, to a minute; "" if Ceph does not tell. Raises ImageMissing."""
        return str(self._json("info", *self._image(image)).get("modify_timestamp", ""))

    def watchers(self, image: str) -> Sequence[str]:
        """Return the addresses of the clients that have an image open. Raises ImageMissing.

        A client that dies without a word is among them for 30 s more (osd_client_watch_timeout).
        """
        output = self._json("status", *self._image(image))["watchers"]
        # Nautilus and later print a list, before it was an object keyed by number.
        items = output.values() if isinstance(output, dict) else output
        return [str(item["address"]) for item in items]

    def locks(self, image: str) -> Sequence[Lock]:
        """Return the holders of an image's lock. A client that died keeps its lock. Raises ImageMissing."""
        output = self._json("lock", "ls", *self._image(image)) or ()
        # Nautilus and later print a list, before it was an object keyed by the lock's id.
        items = [{"id": key, **value} for key, value in output.items()] if isinstance(output, dict) else output
        return [Lock(str(item["id"]), str(item["locker"]), str(item["address"])) for item in items]

    def break_lock(self, image: str, lock: Lock) -> None:
        """Break an image's lock. Its holder must be unable to write by then (`blocklist`). Raises ImageMissing."""
        self._rbd("lock", "rm", *self._image(image), "--", lock.lock_id, lock.locker)

    def used(self, image: str) -> int:
        """Return the bytes that an image itself holds, counted in whole objects. Raises ImageMissing."""
        return sum(held.size for held in self.usage(image).values())

    def usage(self, image: str = "", *, more_seconds: float = 0.0) -> dict[str, Usage]:
        """Return what each image of the pool and namespace holds, or one image alone.

        One command opens all images, one after the other, and reads the object-map of each: with fast-diff a few
        milliseconds for an image. It may take `more_seconds` than others. An image that goes before it is opened is
        left out; one that goes later lets all of it fail, with RbdError. Raises ImageMissing for one image.
        """
        slow = replace(self, timeout=self.timeout + more_seconds)
        found: dict[str, Usage] = {}
        for item in slow._json("du", *(self._image(image) if image else self._where()))["images"]:
            name, size = str(item["name"]), int(item["used_size"])
            # A snapshot has an item of its own.
            found[name] = Usage(str(item["id"]), size + (found[name].size if name in found else 0))
        return found

    def list(self) -> Sequence[str]:
        """Name every image of the pool and namespace."""
        return [str(name) for name in self._json("ls", *self._where())]

    def metadata(self, image: str) -> dict[str, str]:
        """Return the image-meta of an image; clones and copies inherit their parent's. Raises ImageMissing."""
        output = self._json("image-meta", "list", *self._image(image))
        return {str(key): str(value) for key, value in dict(output or {}).items()}

    def set_metadata(self, image: str, key: str, value: str) -> None:
        """Set one image-meta key. Raises ImageMissing."""
        self._rbd("image-meta", "set", *self._image(image), "--", key, value)

    # -- snapshots ------------------------------------------------------------------------

    def snapshot(self, image: str, snapshot: str) -> None:
        """Take a snapshot (0.4 to 1 s). Raises ImageMissing, ImageExists, ImageLocked."""
        self._rbd("snap", "create", *self._image(image), "--snap", snapshot, "--no-progress")

    def snapshots(self, image: str) -> Sequence[str]:
        """Name the snapshots of an image. Raises ImageMissing."""
        return [str(item["name"]) for item in self._json("snap", "ls", *self._image(image))]

    def remove_snapshots(self, image: str) -> int:
        """Delete every snapshot of an image and count them; others may do so at once. Raises ImageMissing, ImageBusy.

        A snapshot that has clones lives on, unnamed, until they go.
        """
        return self._remove_snapshots(*self._image(image))

    def remove_snapshots_of_trashed(self, image_id: str) -> int:
        """Do what `remove_snapshots` does, for an image in the trash."""
        return self._remove_snapshots(*self._where(), "--image-id", image_id)

    def _remove_snapshots(self, *where: str) -> int:
        names = [str(snapshot["name"]) for snapshot in self._json("snap", "ls", *where)]
        for name in names:
            with contextlib.suppress(ImageMissing):
                self._rbd("snap", "rm", *where, "--snap", name, "--no-progress")
        return len(names)

    # -- trash ----------------------------------------------------------------------------

    def trashed(self) -> Sequence[Trashed]:
        """List the whole trash of the pool and namespace, also images whose removal was cut short."""
        items = self._json("trash", "ls", "--all", "--long", *self._where())
        return [
            Trashed(str(item["id"]), str(item["name"]), str(item["source"]), _time(item["deleted_at"]))
            for item in items
        ]

    def remove_trashed(self, image_id: str, give_up: Callable[[], bool]) -> None:
        """Delete an image from the trash, as `remove_slowly` does. Raises what that raises."""
        self._rbd("trash", "rm", *self._where(), "--image-id", image_id, give_up=give_up)

    # -- devices --------------------------------------------------------------------------

    def map(self, image: str, *, read_only: bool, exclusive: bool = True) -> str:
        """Map an image and return its block device. A writable mapping holds the image's exclusive lock.

        `exclusive`: the mapping lets nobody else have the lock meanwhile, neither another writer nor `resize`. Raises
        ImageMissing, ImageLocked (another client has the lock), RbdError. After CommandTimeout the image may be mapped
        all the same: ask `mappings`.
        """
        access = ("--read-only",) if read_only else ("--exclusive",) if exclusive else ()
        options = self._map_options(read_only=read_only)
        argv = ("device", "map", *self._device_type(), *self._image(image), *access, *options)
        try:
            return self._rbd(*argv).strip().splitlines()[-1]
        except RbdError as error:
            if self.device_type == "nbd":
                self._explain_nbd(image, error)
            raise

    def mapped_by(self, words: Sequence[str]) -> str:
        """Return the image that a command line of `map` maps; "" if it is no such command line, or of another pool."""
        pairs = set(zip(words, words[1:]))
        ours = ("device", "map", *self._client(), *self._where())
        if not pairs.issuperset(zip(ours[::2], ours[1::2])) or ("--namespace" in words) != bool(self.namespace):
            return ""
        return next((value for name, value in pairs if name == "--image"), "")

    def _explain_nbd(self, image: str, error: RbdError) -> None:
        """Raise ImageMissing or ImageLocked if that is why rbd-nbd failed: it ends with 1 for any failure."""
        self.info(image)
        if self.locks(image):
            raise ImageLocked(error.argv, error.status, error.reason) from None

    def unmap(self, device: str, image: str) -> None:
        """Unmap a device if it is an image's. Raises ImageBusy while it is open, or mounted in any namespace.

        Raises NotMapped if that image is not mapped there any more: the kernel reuses the names of devices. This looks
        right before it unmaps, which leaves but a moment for that. An image may have several devices, so its name does
        not do. rbd-nbd unmaps a mounted device without a word and kills its file system: the caller must look first.
        """
        options = ("--options", "noudev") if self.device_type == "krbd" else ()
        argv = ("device", "unmap", *self._device_type(), device, *options)
        if not self._is_mapped(device, image):
            raise NotMapped(("rbd", *argv), None, f"it is not mapped from {image}")
        try:
            self._rbd(*argv)
        except ImageBusy:
            raise
        except RbdError as error:
            if self._is_mapped(device, image):
                raise
            raise NotMapped(error.argv, error.status, error.reason) from None

    def _is_mapped(self, device: str, image: str) -> bool:
        return Mapping(image, device) in self.mappings()

    def mappings(self) -> Sequence[Mapping]:
        """List what this host has mapped of this pool and namespace, by the configured device type.

        Ceph before Mimic prints an object keyed by number, later ones a list; krbd says `name`
        where rbd-nbd says `image`.
        """
        output = self._json("device", "list", *self._device_type())
        items = output.values() if isinstance(output, dict) else output or ()
        return [
            Mapping(str(item.get("name") or item.get("image")), str(item["device"]))
            for item in items
            if item["pool"] == self.name and item.get("namespace", "") == self.namespace
        ]

    def rados(self, *words: str) -> str:
        """Run a `rados` command on an object of the pool and namespace (`rados_objects.py`); return what it prints."""
        return self._run(self.rados_argv(*words))

    def rados_of_pool(self, *words: str) -> str:
        """Run a `rados` command on an object of the pool that is in no namespace; return what it prints."""
        return self._run(self._rados("--pool", self.name, *words))

    def rados_of_cluster(self, *words: str) -> str:
        """Run a `rados` command that is for no pool; return what it prints."""
        return self._run(self._rados(*words))

    def rados_argv(self, *words: str) -> tuple[str, ...]:
        """Return the command line of a `rados` command on an object of the pool and namespace."""
        return self._rados(*self._where(), *words)

    def _rados(self, *words: str) -> tuple[str, ...]:
        limits = ("--client-mount-timeout", self._connect_seconds(), "--rados-osd-op-timeout", self._connect_seconds())
        return ("rados", *self._client(), *limits, *words)

    # -- cluster --------------------------------------------------------------------------

    def blocklist(self, address: str, seconds: int) -> None:
        """Let the client at `address` (with its nonce) neither read nor write for `seconds`. Raises RbdError."""
        try:
            self.ceph("osd", "blocklist", "add", address, str(seconds))
        except RbdError as error:
            if error.status != errno.EINVAL:
                raise
            # Before Octopus it had another name.
            self.ceph("osd", "blacklist", "add", address, str(seconds))

    def ceph(self, *words: str) -> Any:
        """Run a `ceph` command and return its JSON. Raises command.CommandMissing where there is no such program."""
        argv = ("ceph", *words, *self._client(), "--connect-timeout", self._connect_seconds())
        return json.loads(self._run((*argv, "--format", "json")).strip() or "null")

    def has_namespace(self) -> bool:
        """Tell whether the pool has our namespace.

        This lists the images there: a key with `profile rbd` for one namespace may not list the namespaces.
        """
        try:
            self.list()
        except PoolMissing:
            return False
        return True

    def overrides(self) -> dict[str, str]:
        """Return the options of librbd that the pool itself sets: no configuration or command line overrides these."""
        output = self._json("config", "pool", "list", last=("--", self.name))
        return {str(item["name"]): str(item["value"]) for item in output if item["source"] == "pool"}

    def client_version(self) -> str:
        """Return the version of `rbd` and the name of its release. Raises command.CommandError."""
        words = command.run(("rbd", "--version"), timeout=self.timeout).stdout.split()
        return " ".join([words[2], *words[4:5]]) if len(words) > 2 else " ".join(words)

    # -- argv -----------------------------------------------------------------------------

    def _client(self) -> tuple[str, ...]:
        return ("--conf", self.configfile, "--id", self.client)

    def _where(self) -> tuple[str, ...]:
        return ("--pool", self.name, *(("--namespace", self.namespace) if self.namespace else ()))

    def _image(self, image: str) -> tuple[str, ...]:
        return (*self._where(), "--image", image)

    def _destination(self, image: str) -> tuple[str, ...]:
        namespace = ("--dest-namespace", self.namespace) if self.namespace else ()
        return ("--dest-pool", self.name, *namespace, "--dest", image)

    def _layout(self, object_size: int, data_pool: str) -> tuple[str, ...]:
        """Return the options for how and where an image's content lies: plain, not striped, in `data_pool`."""
        size, pool = f"{object_size}B", data_pool or self.name
        return ("--object-size", size, "--stripe-unit", size, "--stripe-count", "1", "--data-pool", pool)

    def _device_type(self) -> tuple[str, ...]:
        return ("--device-type", self.device_type)

    def _map_options(self, *, read_only: bool) -> tuple[str, ...]:
        # `noudev`: without a udevd in the host's network namespace, map and unmap wait for ever for its
        # event. The device's name is on stdout, and its links are not used.
        # `rw` or `ro`: rbd_default_map_options may say the other. All else in that option is about the connection.
        # `try-netlink`: each layer needs a device, and without it there are only those of the module's start, 16.
        krbd = ("noudev", "ro" if read_only else "rw")
        ours = krbd if self.device_type == "krbd" else ("try-netlink",)
        options = (*ours, *self.map_options)
        return ("--options", ",".join(options)) if options else ()

    def _json(self, *words: str, last: Sequence[str] = ()) -> Any:
        return json.loads(self._rbd(*words, "--format", "json", *last) or "null")

    def _rbd(self, *words: str, give_up: Callable[[], bool] | None = None) -> str:
        verbs = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
        connect = ("--client-mount-timeout", self._connect_seconds())
        try:
            return self._run(("rbd", *words[:verbs], *self._client(), *connect, *words[verbs:]), give_up)
        except ImageMissing as error:
            if words[0] == "ls":
                raise PoolMissing(error.argv, error.status, error.reason) from None
            # ENOENT may also mean that the pool was deleted, or that the key was not found. After ImageMissing a caller
            # forgets the layer, so it must be true.
            self.list()
            raise

    def _connect_seconds(self) -> str:
        return str(max(1, int(deadline.left(self.timeout) * CONNECT_SHARE)))

    def _run(self, argv: Sequence[str], give_up: Callable[[], bool] | None = None) -> str:
        """Run a command within `timeout`, or, with `give_up`, for as long as it makes progress."""
        try:
            if give_up is None:
                return command.run(argv, timeout=self.timeout).stdout
            command.run_on(argv, timeout=PERCENT_TIMEOUTS * self.timeout, give_up=give_up)
            return ""
        except (command.CommandTimeout, command.CommandGivenUp, command.CommandMissing):
            raise
        except command.CommandError as error:
            raise _BY_ERRNO.get(error.status or 0, RbdError)(error.argv, error.status, error.reason) from None


def _time(text: str) -> float:
    """Read a time as rbd prints it (ctime(3)); command.py has it printed in UTC."""
    return float(calendar.timegm(time.strptime(text, "%a %b %d %H:%M:%S %Y")))


# Feature bits of an RBD image (include/rbd/features.h) that our layers use, in the order of their bits.
# object-map: a nearly empty image is deleted and copied without asking for each of its objects.
_FEATURE_BITS = {"layering": 1, "exclusive-lock": 4, "object-map": 8, "fast-diff": 16, "deep-flatten": 32}
_SUPPORTED = "/sys/bus/rbd/supported_features"


def features(device_type: str) -> tuple[str, ...]:
    """Name the image features to use: for krbd only those that the running kernel can map.

    Where the kernel does not tell (module not loaded yet, rbd-nbd), these are all features. Raises OSError.
    """
    mask = sum(_FEATURE_BITS.values())
    if device_type == "krbd":
        with contextlib.suppress(FileNotFoundError), open(_SUPPORTED, encoding="ascii") as source:
            mask = int(source.read(), 16)
    # fast-diff needs object-map, object-map needs exclusive-lock: the kernel has the lower bits first.
    return tuple(name for name, bit in _FEATURE_BITS.items() if mask & bit)


def _features(features: Collection[str]) -> tuple[str, ...]:
    return tuple(word for feature in features for word in ("--image-feature", feature))
