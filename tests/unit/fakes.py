"""A pool in memory, for the tests of what is decided by it: layers, what is mounted, the driver, what is dead.

What a real pool, and the kernel, do with it is seen in tests/integration.
"""

from __future__ import annotations

import errno
import json
import shutil
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import rbdcli
from cluster.owner import Owner
from host import command
from images.base_image import FORMAT, FORMAT_KEY, FS_KEY
from images.layers import BASE_SNAPSHOT
from images.record import KEY, Record

SIZE = 1 << 30
BASE_IMAGE = "docker_image_base_image"


def failed(kind: type[rbdcli.RbdError], status: int, words: str = "it failed") -> rbdcli.RbdError:
    """What a command of rbd's ends with."""
    return kind(("rbd",), status, words)


def missing() -> rbdcli.RbdError:
    """What a command of rbd's ends with that asks for what has gone."""
    return failed(rbdcli.ImageMissing, errno.ENOENT, "No such file or directory")


def timed_out() -> command.CommandTimeout:
    """What a command ends with that does not answer."""
    return command.CommandTimeout(("rbd",), None, "no answer within 5 s")


def recorded(owner: str | Owner, *parents: str) -> dict[str, str]:
    """The metadata of a layer's image: whose it is, and what is below it."""
    whose = owner if isinstance(owner, Owner) else Owner.parse(owner)
    return {FORMAT_KEY: FORMAT, FS_KEY: "xfs", KEY: str(Record(whose, parents))}


@dataclass
class FakeImage:
    """An image: its size, what it holds itself in bytes, its snapshots, whose clone it is, who has it open."""

    image_id: str
    size: int = SIZE
    used: int = 0
    parent: rbdcli.Parent | None = None
    data_pool: str = ""
    snapshots: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    watchers: list[str] = field(default_factory=list)
    locks: list[rbdcli.Lock] = field(default_factory=list)
    created: float = field(default_factory=time.time)

    @property
    def record(self) -> Record:
        """What its metadata says of the layer."""
        said = Record.parse(self.metadata.get(KEY, ""))
        assert said
        return said


class FakeObjects:
    """Objects that are no image's, as `rados` shows them: attributes, watchers, omaps, locks with what their holders
    said.
    """

    def __init__(self) -> None:
        self.omaps: dict[str, dict[str, str]] = {}
        self.attributes: dict[str, dict[str, str]] = {}
        self.watchers: dict[str, list[str]] = {}
        self.locks: dict[tuple[str, str], dict[str, str]] = {}

    def rados(self, *words: str) -> str:
        """Run one command. Raises RbdError."""
        verb, name = words[0], words[1] if len(words) > 1 else ""
        if "omap" in verb:
            return self._omap(*words)
        if words[:2] == ("--force-full", "rm"):
            self.omaps.pop(words[2], None)
        elif verb == "setxattr":
            self.attributes.setdefault(name, {})[words[2]] = words[3]
        elif verb == "lock":
            return self._lock(*words[1:])
        elif verb in ("listxattr", "rmxattr", "listwatchers"):
            if name not in self.attributes:
                raise failed(rbdcli.RbdError, 1, f"error of {name}: (2) No such file or directory")
            if verb == "rmxattr":
                self.attributes[name].pop(words[2], None)
            elif verb == "listxattr":
                return "".join(f"{key}\n" for key in self.attributes[name])
            else:
                return _watchers(self.watchers.get(name, ()))
        return ""

    def _omap(self, verb: str, name: str, *words: str) -> str:
        if verb == "setomapval":
            value = Path(words[2]).read_text(encoding="utf-8") if words[1] == "--input-file" else words[1]
            self.omaps.setdefault(name, {})[words[0]] = value
            return ""
        if name not in self.omaps:
            raise failed(rbdcli.RbdError, 1, f"error of {name}: (2) No such file or directory")
        omap = self.omaps[name]
        if verb == "rmomapkey":
            omap.pop(words[0], None)
        elif verb == "getomapval":
            if words[0] not in omap:
                raise failed(rbdcli.RbdError, 1, "no message (exit 1)")
            return omap[words[0]]
        elif verb == "listomapkeys":
            return "".join(f"{key}\n" for key in sorted(omap))
        else:
            return "".join(_dumped(key, value.encode()) for key, value in sorted(omap.items()))
        return ""

    def _lock(self, verb: str, name: str, lock: str, *words: str) -> str:
        lockers = self.locks.setdefault((name, lock), {})
        if verb == "info":
            listed = [{"name": client, "description": said} for client, said in lockers.items()]
            return json.dumps({"lockers": listed})
        if verb == "break":
            del lockers[words[0]]
        elif lockers:
            raise failed(rbdcli.RbdError, 1, "failed locking: (16) Device or resource busy")
        else:
            self.attributes.setdefault(name, {})
            lockers[f"client.{len(self.locks)}"] = words[words.index("--lock-description") + 1]
        return ""


def _dumped(key: str, value: bytes) -> str:
    """What `rados listomapvals` prints of one value (seen on 16.2.15)."""
    rows = (f"{at:08x}  {_hex(value[at : at + 16]):48}  |..|" for at in range(0, len(value), 16))
    return "\n".join([key, f"value ({len(value)} bytes) :", *rows, f"{len(value):08x}", "", ""])


def _header(image: FakeImage) -> str:
    """What `rados listomapvals` prints of an image's header."""
    nanoseconds = round(image.created % 1 * 1e9) % 10**9
    values = {"create_timestamp": struct.pack("<II", int(image.created), nanoseconds)}
    values |= {f"metadata_{key}": value.encode() for key, value in image.metadata.items()}
    return "".join(_dumped(key, value) for key, value in sorted(values.items()))


def _watchers(addresses: Sequence[str]) -> str:
    return "".join(f"watcher={at} client.1 cookie=2\n" for at in addresses)


def _hex(row: bytes) -> str:
    return f"{row[:8].hex(' ')}  {row[8:].hex(' ')}"


class FakePool:
    """A pool with images, a trash and a host that maps. `fails[METHOD]`: raised by its next calls, one after the other.

    An exception in a pair with True is raised after the method has done its work: what timed out may be done.

    `content`: a directory for the files of the images, where a test has any (`fake_host.py`). `read_only`: the devices
    that take no writes.
    """

    name, namespace, client, configfile, timeout, device_type = "pool", "", "me", "/ceph.conf", 5.0, "krbd"

    def __init__(self) -> None:
        self.images: dict[str, FakeImage] = {}
        self.trashed_images: dict[str, tuple[str, FakeImage]] = {}
        self.sources: dict[str, str] = {}
        self.devices: dict[str, str] = {}
        self.read_only: set[str] = set()
        self.content: Path | None = None
        self.fails: dict[str, Any] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.objects = FakeObjects()
        self._ids = 0

    def as_pool(self) -> rbdcli.Pool:
        """Return it by the type that those have who use it."""
        return cast(rbdcli.Pool, self)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found) or name in _NOT_OF_POOLS:
            return found
        return lambda *words, **options: self._called(name, found, *words, **options)

    def _called(self, name: str, method: Callable[..., Any], *words: Any, **options: Any) -> Any:
        self.calls.append((name, *words))
        failure = self.fails[name].pop(0) if self.fails.get(name) else None
        if isinstance(failure, tuple):
            method(*words, **options)
            failure = failure[0]
        if failure is not None:
            raise failure
        return method(*words, **options)

    def named(self, method: str) -> Sequence[Any]:
        """The first words of all calls of a method."""
        return [call[1] for call in self.calls if call[0] == method]

    def add(self, image: str, **fields: Any) -> FakeImage:
        """Put an image into the pool."""
        self._ids += 1
        self.images[image] = FakeImage(f"id{self._ids}", **fields)
        return self.images[image]

    def add_base(self, **fields: Any) -> FakeImage:
        """Put a base image into the pool that is whole."""
        same = {"metadata": {FORMAT_KEY: FORMAT, FS_KEY: "xfs"}, "snapshots": [BASE_SNAPSHOT]}
        return self.add(BASE_IMAGE, **{**same, **fields})

    def add_layer(self, layer: str, *parents: str, owner: str | Owner = "", **fields: Any) -> FakeImage:
        """Put a layer's image into the pool, by default one of this host and the home /home."""
        return self.add(f"docker_image_{layer}", metadata=recorded(owner or Owner.here("/home"), *parents), **fields)

    def files(self, image: str) -> Path:
        """The directory of what is in the file system of an image, which is made when it is asked for first."""
        assert self.content
        path = self.content / self._image(image).image_id
        if not path.exists():
            for name in ("rootfs", "work", "none"):
                (path / name).mkdir(parents=True)
        return path

    def _image(self, image: str) -> FakeImage:
        if image not in self.images:
            raise missing()
        return self.images[image]

    def _new(self, image: str, **fields: Any) -> None:
        if image in self.images:
            raise failed(rbdcli.ImageExists, errno.EEXIST)
        self.add(image, **fields)

    def _clones(self, image_id: str) -> Sequence[str]:
        everything = [*self.images.items(), *self.trashed_images.values()]
        names = {name for name, item in everything if item.image_id == image_id}
        return [name for name, item in everything if item.parent and item.parent.image in names]

    # -- images ------------------------------------------------------------------------------

    def beside(self, name: str) -> rbdcli.Pool:
        return self.as_pool()

    def create(self, image: str, size: int, features: Sequence[str], object_size: int, data_pool: str) -> None:
        self._new(image, size=size, data_pool=data_pool)

    def clone(
        self, parent: rbdcli.Parent, image: str, features: Sequence[str], object_size: int, data_pool: str
    ) -> None:
        origin = self._image(parent.image)
        if parent.snapshot not in origin.snapshots:
            raise missing()
        same = {"size": origin.size, "metadata": dict(origin.metadata)}
        self._new(image, **same, parent=parent, data_pool=data_pool)

    def deep_copy(self, source: str, image: str, object_size: int, data_pool: str) -> None:
        origin = self._image(source)
        same = {"size": origin.size, "used": origin.used, "parent": origin.parent, "snapshots": [*origin.snapshots]}
        self._new(image, **same, metadata=dict(origin.metadata), data_pool=data_pool)
        if self.content:
            shutil.copytree(self.files(source), self.content / self._image(image).image_id, symlinks=True)

    def rename(self, image: str, new_name: str) -> None:
        item = self._image(image)
        if new_name in self.images:
            raise failed(rbdcli.ImageExists, errno.EEXIST)
        self.images[new_name] = self.images.pop(image)
        assert item is self.images[new_name]

    def resize(self, image: str, size: int) -> None:
        self._image(image).size = size

    def info(self, image: str) -> rbdcli.Info:
        item = self._image(image)
        return rbdcli.Info(item.size, item.data_pool)

    def data(self, image: str) -> rbdcli.Data:
        item = self._image(image)
        return rbdcli.Data(item.image_id, f"rbd_data.{item.image_id}", 1 << 18, item.data_pool or self.name)

    def extents(self, image: str) -> Sequence[int]:
        return [at << 18 for at in range(self._image(image).used >> 18)]

    def used(self, image: str) -> int:
        return self._image(image).used

    def usage(self, image: str = "", *, more_seconds: float = 0.0) -> dict[str, rbdcli.Usage]:
        wanted = {image: self._image(image)} if image else self.images
        return {name: rbdcli.Usage(item.image_id, item.used) for name, item in wanted.items()}

    def created(self, image: str) -> float:
        return self._image(image).created

    def written(self, image: str) -> str:
        self._image(image)
        return "Thu Jan  1 00:00:07 1970"

    def watchers(self, image: str) -> Sequence[str]:
        return self._image(image).watchers

    def locks(self, image: str) -> Sequence[rbdcli.Lock]:
        return list(self._image(image).locks)

    def break_lock(self, image: str, lock: rbdcli.Lock) -> None:
        self._image(image).locks.remove(lock)

    def blocklist(self, address: str, seconds: int) -> None:
        pass

    def list(self) -> Sequence[str]:
        return [*self.images]

    def metadata(self, image: str) -> dict[str, str]:
        return dict(self._image(image).metadata)

    def set_metadata(self, image: str, key: str, value: str) -> None:
        self._image(image).metadata[key] = value

    def snapshot(self, image: str, snapshot: str) -> None:
        item = self._image(image)
        if snapshot in item.snapshots:
            raise failed(rbdcli.ImageExists, errno.EEXIST)
        item.snapshots.append(snapshot)

    def snapshots(self, image: str) -> Sequence[str]:
        return [*self._image(image).snapshots]

    # -- removal -----------------------------------------------------------------------------

    def remove(self, image: str) -> None:
        item = self._image(image)
        if item.watchers or (image in self.devices and self.devices[image] not in self.read_only):
            raise failed(rbdcli.ImageBusy, errno.EBUSY)
        if item.snapshots or self._clones(item.image_id):
            raise failed(rbdcli.ImageHasChildren, errno.ENOTEMPTY)
        del self.images[image]

    def remove_slowly(self, image: str, give_up: Callable[[], bool]) -> None:
        item = self._image(image)
        if self._clones(item.image_id) and not item.snapshots:
            self.trash(image)
        else:
            self.remove(image)

    def remove_snapshots(self, image: str) -> int:
        item = self._image(image)
        count, item.snapshots = len(item.snapshots), []
        return count

    def trash(self, image: str, source: str = "USER_PARENT") -> None:
        """Move an image to the trash: by default as its removal does, if it has clones."""
        item = self._image(image)
        del self.images[image]
        self.trashed_images[item.image_id] = (image, item)
        self.sources[item.image_id] = source

    def trashed(self) -> Sequence[rbdcli.Trashed]:
        return [
            rbdcli.Trashed(image_id, name, self.sources[image_id], 0.0)
            for image_id, (name, _) in self.trashed_images.items()
        ]

    def remove_trashed(self, image_id: str, give_up: Callable[[], bool]) -> None:
        if image_id not in self.trashed_images:
            raise missing()
        if self.trashed_images[image_id][1].snapshots or self._clones(image_id):
            raise failed(rbdcli.ImageHasChildren, errno.ENOTEMPTY)
        del self.trashed_images[image_id]

    def remove_snapshots_of_trashed(self, image_id: str) -> int:
        name, item = self.trashed_images[image_id]
        self.trashed_images[image_id] = (name, replace(item, snapshots=[]))
        return len(item.snapshots)

    # -- objects and devices -----------------------------------------------------------------

    def rados(self, *words: str) -> str:
        if words[0] in ("listomapvals", "listwatchers") and words[1].startswith("rbd_header."):
            everything = [*self.images.values(), *(item for _, item in self.trashed_images.values())]
            image = next((item for item in everything if f"rbd_header.{item.image_id}" == words[1]), None)
            if image is None:
                raise failed(rbdcli.RbdError, 1, f"error of {words[1]}: (2) No such file or directory")
            return _header(image) if words[0] == "listomapvals" else _watchers(image.watchers)
        if words[0] == "setomapval" and words[1].startswith("rbd_header."):
            self._called("set_header", self._set_header, *words[1:])
            return ""
        return self.objects.rados(*words)

    def _set_header(self, name: str, key: str, value: str) -> None:
        [image] = [item for item in self.images.values() if f"rbd_header.{item.image_id}" == name]
        image.metadata[key.partition("_")[2]] = value

    def rados_argv(self, *words: str) -> Sequence[str]:
        """A command that watches until its standard input ends."""
        return ("sh", "-c", "echo watching; exec cat")

    def map(self, image: str, *, read_only: bool, exclusive: bool = True) -> str:
        self._image(image)
        if image in self.devices and not read_only:
            raise failed(rbdcli.ImageLocked, errno.EROFS)
        assert image not in self.devices, f"{image} is mapped already"
        self._ids += 1
        self.devices[image] = device = f"/dev/fake{self._ids}"
        if read_only:
            self.read_only.add(device)
        return device

    def mappings(self) -> Sequence[rbdcli.Mapping]:
        return [rbdcli.Mapping(image, device) for image, device in list(self.devices.items())]

    def mapped_by(self, words: Sequence[str]) -> str:
        return ""

    def unmap(self, device: str, image: str) -> None:
        if self.devices.get(image) != device:
            raise failed(rbdcli.NotMapped, errno.EINVAL)
        del self.devices[image]


# What tests ask of it, and the driver does not.
_NOT_OF_POOLS = ("as_pool", "add", "add_base", "add_layer", "named", "objects", "files", "mapped_by")
