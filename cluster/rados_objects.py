"""Objects of a pool that belong to no image: their attributes, their watchers, their locks, their omap.

Their names begin with the image prefix. `rados` ends with 1 whatever went wrong. Every function raises RbdError or
another command.CommandError if its command fails. `name` is always that of an object.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from host import command, deadline, task
from rbdcli import Pool, PoolMissing, RbdError

# Made by `rbd pool init`, or with the first image; in no namespace (Ceph, librbd/image/ValidatePoolRequest.cc).
_MADE_FOR_IMAGES = "rbd_info"
# Made by the first removal (Ceph, include/rbd_types.h).
_TRASH = "rbd_trash"
# How the messages of `rados` end, since its exit status tells nothing: there is no such object (ENOENT), and so on.
_NO_OBJECT = "(2) No such file or directory"
_NO_RIGHT = "(1) Operation not permitted"
_NO_OVERWRITE = "(95) Operation not supported"
# A key with its value, as `rados listomapvals` prints them.
_DUMPED = re.compile(r"^(.+)\nvalue \((\d+) bytes\) :\n(?:(?:[0-9a-f]{8}(?:  .*)?|\*)\n)*", re.MULTILINE)
_TIME = struct.Struct("<II")
# An object that nobody makes. A command on it shows whether the pool would take a write.
_NEVER_MADE = "docker_graph_driver.never_made"
# A full pool lets writers wait. The driver waits no longer than this.
OVERWRITE_SECONDS = 4.0
# Bytes of a row in what `rados listomapvals` prints.
_ROW = 16
# Characters of a value that stands on the command line, where the kernel allows 128 KiB and the log shows it.
_SHORT = 4096
# Commands at the same time. Each object that is not there takes a command of its own.
_AT_ONCE = 8


class Header(NamedTuple):
    """What stands in an image's header: its image-meta, and when it was made, by the cluster's clock in seconds since
    1970; None if that is not known.
    """

    metadata: Mapping[str, str]
    created: float | None


def pools(pool: Pool) -> Sequence[str]:
    """Name the pools of the cluster. This asks the monitors alone, and so shows whether they answer."""
    return pool.rados_of_cluster("lspools").splitlines()


def is_made_for_images(pool: Pool) -> bool:
    """Tell whether the pool, which must exist, was made ready for images (`rbd pool init`).

    Raises command.CommandError if the pool cannot be used at all.
    """
    try:
        pool.rados_of_pool("stat", _MADE_FOR_IMAGES)
    except RbdError as error:
        # The exit status of `rbd` tells, and that of `rados` does not, that we have no right to the pool.
        try:
            pool.list()
        except PoolMissing:
            # The namespace is not there, for which the caller has another message.
            return True
        if _NO_OBJECT not in str(error):
            raise
        return False
    return True


def may_write(pool: Pool) -> bool:
    """Tell whether our key may write to a pool. A full pool answers too, and nothing is left in it.

    Raises command.CommandError if the pool cannot be used at all.
    """
    try:
        pool.rados("--force-full", "rm", _NEVER_MADE)
    except RbdError as error:
        if _NO_RIGHT not in str(error) and _NO_OBJECT not in str(error):
            raise
        return _NO_RIGHT not in str(error)
    return True


def can_overwrite(pool: Pool) -> bool:
    """Tell whether objects of a pool can be changed. True also if the pool does not answer, as a full one does not.

    An erasure-coded pool allows it once it was told to (allow_ec_overwrites), and then for ever.
    """
    try:
        with deadline.within(OVERWRITE_SECONDS):
            # This does not make the object.
            pool.rados("truncate", _NEVER_MADE, "0")
    except RbdError as error:
        return _NO_OVERWRITE not in str(error)
    except command.CommandTimeout:
        pass
    return True


def used(pool: Pool, name: str) -> int:
    """Return the bytes that the pool `name` stores, all copies counted. Raises LookupError if there is no such pool."""
    listed = json.loads(pool.rados_of_cluster("df", "--format", "json"))["pools"]
    return {str(item["name"]): int(item["size_bytes"]) for item in listed}[name]


def sign(pool: Pool, name: str, key: str, value: str) -> None:
    """Make an object unless it is there, and write one of its attributes. In a full pool this hangs: CommandTimeout."""
    pool.rados("setxattr", name, key, value)


def unsign(pool: Pool, name: str, key: str) -> None:
    """Remove an attribute of an object; do nothing if there is no such object."""
    with _missing_is_nothing():
        pool.rados("rmxattr", name, key)


def signed(pool: Pool, name: str) -> Sequence[str]:
    """Return the keys of an object's attributes; none if there is no such object."""
    with _missing_is_nothing():
        return pool.rados("listxattr", name).splitlines()
    return []


def watching(pool: Pool, name: str) -> Sequence[str]:
    """Return the addresses of the clients that watch an object; none if there is no such object."""
    with _missing_is_nothing():
        return re.findall(r"^watcher=(\S+) ", pool.rados("listwatchers", name), re.MULTILINE)
    return []


def start_watching(pool: Pool, name: str) -> subprocess.Popen[bytes]:
    """Start a process that watches an object until its standard input ends; the caller reaps it.

    It prints a line once it watches, and another line if it loses its watch.
    """
    # The time limits of `rados` count for its start and its end only, not for the watch between them.
    return command.start(pool.rados_argv("watch", name), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)


def prepare_trash(pool: Pool) -> None:
    """Make the object in which librbd lists the trash, unless it is there.

    In a full pool this object can still be written, and so an image be removed, but no new object can be made (Ceph,
    osd/PrimaryLogPG.cc, prepare_transaction: FULL_TRY).
    """
    try:
        pool.rados("stat", _TRASH)
    except RbdError as error:
        if _NO_OBJECT not in str(error):
            raise
        pool.rados("create", _TRASH)


def metadata(pool: Pool, image_id: str, key: str) -> str | None:
    """Return one image-meta value of an image, in the trash or not; None if it has no such key, or no header any more.

    A full pool answers, too: `rbd image-meta` would open the image to write, and hang. The value lies in the omap of
    the header object, as it is (Ceph, cls/rbd/cls_rbd.cc, metadata_set).
    """
    try:
        output = pool.rados("listomapvals", f"rbd_header.{image_id}")
    except RbdError as error:
        if _NO_OBJECT not in str(error):
            raise
        return None
    # `getomapval` would tell on its standard output only that there is no such key.
    found = re.search(
        rf"^metadata_{re.escape(key)}\nvalue \((\d+) bytes\) :\n((?:[0-9a-f]{{8}}|\*).*\n)*", output, re.MULTILINE
    )
    return _undumped(found[0], int(found[1])) if found else None


def header(pool: Pool, image_id: str) -> Header | None:
    """Return what stands in the header of an image; None if it has gone. One command, where `rbd` needs two.

    The time is a utime_t: seconds and nanoseconds, of 32 bits each (Ceph, cls/rbd/cls_rbd.cc, create).
    """
    values = omap(pool, f"rbd_header.{image_id}")
    if not values:
        return None
    prefix = "metadata_"
    metadata = {key[len(prefix) :]: value for key, value in values.items() if key.startswith(prefix)}
    made = values.get("create_timestamp", "").encode("utf-8", "surrogateescape")
    created = None
    if len(made) == _TIME.size:
        seconds, nanoseconds = _TIME.unpack(made)
        created = seconds + nanoseconds / 1e9
    return Header(metadata, created)


def opened(pool: Pool, image_id: str) -> Sequence[str]:
    """Return the addresses of the clients that have an image open; none if it has gone.

    Linux 5.5 and newer watches no image that it has mapped read-only.
    """
    return watching(pool, f"rbd_header.{image_id}")


def _undumped(dump: str, size: int) -> str:
    """Read `size` bytes from rows such as "00000000  76 6d 20 2f 68 6f 6d 65  20 78                    |vm /home x|".

    Rows that repeat the row before them are left out, and one "*" stands for all of them.
    """
    content = b""
    for at, row in re.findall(r"^([0-9a-f]{8})  (.{48})  \|", dump, re.MULTILINE):
        while len(content) < int(at, 16):
            content += content[-_ROW:]
        content += bytes.fromhex(row)
    while len(content) < size:
        content += content[-_ROW:]
    return content[:size].decode("utf-8", "surrogateescape")


def omap_keys(pool: Pool, name: str) -> Sequence[str]:
    """Return the keys of an object's omap; none if there is no such object. No key may have a line feed."""
    with _missing_is_nothing():
        return pool.rados("listomapkeys", name).splitlines()
    return []


def omap_value(pool: Pool, name: str, key: str) -> str:
    """Return one value of an object's omap. Raises RbdError also if there is no such key or object."""
    # To a file it writes the value as it is, and otherwise a dump.
    return pool.rados("getomapval", name, key, "/dev/stdout")


def omap(pool: Pool, name: str) -> Mapping[str, str]:
    """Return an object's whole omap; nothing if there is no such object. No key may have a line feed."""
    with _missing_is_nothing():
        output = pool.rados("listomapvals", name)
        return {found[1]: _undumped(found[0], int(found[2])) for found in _DUMPED.finditer(output)}
    return {}


def set_metadata(pool: Pool, image_id: str, key: str, value: str) -> None:
    """Write one image-meta value of an image that somebody may have mapped exclusively, which `rbd image-meta` refuses.

    It is read when it is asked for, and by nobody else: clients are told of changes to other keys only (`conf_...`).
    Ceph was just asked for the image, which nobody deletes meanwhile: a header that is missing would be made.
    """
    pool.rados("setomapval", f"rbd_header.{image_id}", f"metadata_{key}", value)


def set_omap(pool: Pool, name: str, key: str, value: str) -> None:
    """Write one key of an object's omap, and make the object unless it is there. In a full pool this hangs."""
    if len(value) <= _SHORT:
        pool.rados("setomapval", name, key, value)
        return
    memory = os.memfd_create("omap")
    try:
        with open(memory, "wb", closefd=False) as target:
            target.write(value.encode("utf-8", "surrogateescape"))
        pool.rados("setomapval", name, key, "--input-file", f"/proc/{os.getpid()}/fd/{memory}")
    finally:
        os.close(memory)


def remove_omap(pool: Pool, name: str, key: str) -> None:
    """Remove a key of an object's omap; do nothing if there is no such key or object. In a full pool this hangs."""
    with _missing_is_nothing():
        pool.rados("rmomapkey", name, key)


def delete(pool: Pool, names: Sequence[str]) -> None:
    """Delete objects, also in a full pool. Objects that are not there are no failure.

    Raises command.CommandError; some objects may be deleted then.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        # `list` raises the first failure.
        list(threads.map(task.carried(lambda first: _delete(pool, names[first::_AT_ONCE])), range(_AT_ONCE)))


def _delete(pool: Pool, names: Sequence[str]) -> None:
    left = list(names)
    while left:
        try:
            pool.rados("--force-full", "rm", *left)
            return
        except RbdError as error:
            # `rados` ends at the first object that is not there.
            missing = next((name for name in left if f">{name}: {_NO_OBJECT}" in str(error)), None)
            if missing is None:
                raise
            del left[: left.index(missing) + 1]


def lock(pool: Pool, name: str, lock: str, holder: str, seconds: float) -> bool:
    """Try to take a lock of an object for `seconds`, after which it ends by itself; tell whether it was taken.

    A lock of the same `holder` is from an earlier life of the caller. It is broken, and the next try can take it.
    """
    words = ("lock", "get", name, lock, "--lock-type", "exclusive", "--lock-duration", str(int(seconds)))
    try:
        pool.rados(*words, "--lock-description", holder)
    except RbdError:
        # Another has the lock, or had it a moment ago. If the failure was another one, this command fails too.
        for locker in _lockers(pool, name, lock):
            if locker["description"] == holder:
                _break(pool, name, lock, locker)
        return False
    return True


def holders(pool: Pool, name: str, lock: str) -> Sequence[str]:
    """Return the descriptions of those who have a lock of an object; none if there is no such object."""
    with _missing_is_nothing():
        return [locker["description"] for locker in _lockers(pool, name, lock)]
    return []


def hold(pool: Pool, name: str, lock: str, holder: str) -> None:
    """Take a lock of an object for good, and break it if others have it. The caller knows that they need it no more."""
    for locker in _lockers(pool, name, lock):
        if locker["description"] == holder:
            return
        _break(pool, name, lock, locker)
    pool.rados("lock", "get", name, lock, "--lock-type", "exclusive", "--lock-description", holder)


def unlock(pool: Pool, name: str, lock: str) -> None:
    """Break a lock of an object, whoever has it: the caller took it by `lock`."""
    for locker in _lockers(pool, name, lock):
        _break(pool, name, lock, locker)


@contextlib.contextmanager
def _missing_is_nothing() -> Iterator[None]:
    """Let the `with` block end early if there is no such object."""
    try:
        yield
    except RbdError as error:
        if _NO_OBJECT not in str(error):
            raise


def _break(pool: Pool, name: str, lock: str, locker: Mapping[str, str]) -> None:
    """Break a lock, unless it has ended by itself."""
    try:
        pool.rados("lock", "break", name, lock, locker["name"])
    except RbdError:
        if locker in _lockers(pool, name, lock):
            raise


def _lockers(pool: Pool, name: str, lock: str) -> Sequence[Mapping[str, str]]:
    lockers = json.loads(pool.rados("lock", "info", name, lock))["lockers"]
    return [{key: str(item[key]) for key in ("name", "description")} for item in lockers]
