"""Objects of a pool that are no image's: who watches one, and a lock that ends by itself.

Their names begin with the image prefix. `rados` ends with 1 whatever went wrong.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from host import command, deadline
from rbdcli import Pool, PoolMissing, RbdError

# Made by `rbd pool init`, or with the first image; in no namespace (Ceph, librbd/image/ValidatePoolRequest.cc).
_MADE_FOR_IMAGES = "rbd_info"
# Made by the first removal (Ceph, include/rbd_types.h).
_TRASH = "rbd_trash"
# How `rados` says what its exit status does not tell: that there is no such object (ENOENT).
_NO_OBJECT = "(2) No such file or directory"
_NO_RIGHT = "(1) Operation not permitted"
_NO_OVERWRITE = "(95) Operation not supported"
# Asked for to see whether it could be written.
_NEVER_MADE = "docker_graph_driver.never_made"
# A full pool lets writers wait: nobody waits for it so long.
OVERWRITE_SECONDS = 4.0
# Bytes of a row in what `rados listomapvals` prints.
_ROW = 16
# Commands at the same time: of objects that are not there, each takes one.
_AT_ONCE = 8


def pools(pool: Pool) -> Sequence[str]:
    """Name the pools of the cluster. The monitors alone are asked: it tells, too, whether they answer."""
    return pool.rados_of_cluster("lspools").splitlines()


def is_made_for_images(pool: Pool) -> bool:
    """Tell whether somebody has made the pool, which must exist, ready for images.

    Raises RbdError or command.CommandTimeout if the pool cannot be used at all.
    """
    try:
        pool.rados_of_pool("stat", _MADE_FOR_IMAGES)
    except RbdError as error:
        # `rbd` tells by its exit status what `rados` does not: no right to the pool.
        try:
            pool.list()
        except PoolMissing:
            # The namespace is not there, which is told in other words.
            return True
        if _NO_OBJECT not in str(error):
            raise
        return False
    return True


def may_write(pool: Pool) -> bool:
    """Tell whether our key may write to a pool: a full one answers too, and nothing is left in it.

    Raises RbdError or command.CommandTimeout if the pool cannot be used at all.
    """
    try:
        pool.rados("--force-full", "rm", _NEVER_MADE)
    except RbdError as error:
        if _NO_RIGHT not in str(error) and _NO_OBJECT not in str(error):
            raise
        return _NO_RIGHT not in str(error)
    return True


def can_overwrite(pool: Pool) -> bool:
    """Tell whether objects of a pool can be changed, as far as it says so now: a full one says nothing.

    An erasure-coded pool can only once it was told to; and then for ever.
    """
    try:
        with deadline.within(OVERWRITE_SECONDS):
            # Makes no object that is not there.
            pool.rados("truncate", _NEVER_MADE, "0")
    except RbdError as error:
        return _NO_OVERWRITE not in str(error)
    except command.CommandTimeout:
        pass
    return True


def used(pool: Pool, name: str) -> int:
    """Return the bytes that the pool of a name stores, all copies counted. Raises LookupError if there is none."""
    listed = json.loads(pool.rados_of_cluster("df", "--format", "json"))["pools"]
    return {str(item["name"]): int(item["size_bytes"]) for item in listed}[name]


def sign(pool: Pool, name: str, key: str, value: str) -> None:
    """Make an object unless it is there, and write an attribute of it. A full pool does not take it."""
    pool.rados("setxattr", name, key, value)


def unsign(pool: Pool, name: str, key: str) -> None:
    """Remove an attribute of an object; if there is none, nothing."""
    with _missing_is_nothing():
        pool.rados("rmxattr", name, key)


def signed(pool: Pool, name: str) -> Sequence[str]:
    """Return the keys of an object's attributes; of one that is not there, none."""
    with _missing_is_nothing():
        return pool.rados("listxattr", name).splitlines()
    return []


def watching(pool: Pool, name: str) -> Sequence[str]:
    """Return the addresses of the clients that watch an object; nobody watches one that is not there."""
    with _missing_is_nothing():
        return re.findall(r"^watcher=(\S+) ", pool.rados("listwatchers", name), re.MULTILINE)
    return []


def start_watching(pool: Pool, name: str) -> subprocess.Popen[bytes]:
    """Start a process that watches an object until its standard input ends; the caller reaps it.

    It prints a line once it watches, and another one should it lose its watch.
    """
    # Only its own way out asks the cluster for anything, and that must have an end.
    return command.start(pool.rados_argv("watch", name), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)


def prepare_trash(pool: Pool) -> None:
    """Make the object in which librbd writes down what is in the trash, unless it is there.

    A full pool lets that be written, and so an image be removed, but no new object be made (Ceph,
    osd/PrimaryLogPG.cc, prepare_transaction: FULL_TRY).
    """
    try:
        pool.rados("stat", _TRASH)
    except RbdError as error:
        if _NO_OBJECT not in str(error):
            raise
        pool.rados("create", _TRASH)


def metadata(pool: Pool, image_id: str, key: str) -> str | None:
    """Return one image-meta value of an image, in the trash or not; None if it has none, or has no header any more.

    `rbd image-meta` opens the image to write, which a full pool does not let it do (ceph, cls/rbd/cls_rbd.cc,
    metadata_set: the value lies in the header object's omap, as it is). Raises RbdError.
    """
    try:
        said = pool.rados("listomapvals", f"rbd_header.{image_id}")
    except RbdError as error:
        if _NO_OBJECT not in str(error):
            raise
        return None
    # `getomapval` says only on its standard output that there is no such key.
    found = re.search(
        rf"^metadata_{re.escape(key)}\nvalue \((\d+) bytes\) :\n((?:[0-9a-f]{{8}}|\*).*\n)*", said, re.MULTILINE
    )
    return _undumped(found[0], int(found[1])) if found else None


def _undumped(dump: str, size: int) -> str:
    """Read `size` bytes from rows such as "00000000  76 6d 20 2f 68 6f 6d 65  20 78                    |vm /home x|".

    A row that says the same as the one before it is left out, with all that follow it and say so, and a "*" says that.
    """
    content = b""
    for at, row in re.findall(r"^([0-9a-f]{8})  (.{48})  \|", dump, re.MULTILINE):
        while len(content) < int(at, 16):
            content += content[-_ROW:]
        content += bytes.fromhex(row)
    while len(content) < size:
        content += content[-_ROW:]
    return content[:size].decode("utf-8", "surrogateescape")


def delete(pool: Pool, names: Sequence[str]) -> None:
    """Delete objects, also in a full pool; those that are not there are no failure. Raises RbdError."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        # Which raises the first failure, after all have been tried.
        list(threads.map(lambda first: _delete(pool, names[first::_AT_ONCE]), range(_AT_ONCE)))


def _delete(pool: Pool, names: Sequence[str]) -> None:
    left = list(names)
    while left:
        try:
            pool.rados("--force-full", "rm", *left)
            return
        except RbdError as error:
            # It ends with the first that is not there.
            missing = next((name for name in left if f">{name}: {_NO_OBJECT}" in str(error)), None)
            if missing is None:
                raise
            del left[: left.index(missing) + 1]


def lock(pool: Pool, name: str, lock: str, holder: str, seconds: float) -> bool:
    """Take a lock of an object for some seconds, whoever runs the commands in them; false if another has it.

    A lock of the same `holder` is one of an earlier life of the caller, and broken.
    """
    words = ("lock", "get", name, lock, "--lock-type", "exclusive", "--lock-duration", str(int(seconds)))
    try:
        pool.rados(*words, "--lock-description", holder)
    except RbdError:
        # Another has it, or had it a moment ago. If it was anything else, this fails too.
        for locker in _lockers(pool, name, lock):
            if locker["description"] == holder:
                _break(pool, name, lock, locker)
        return False
    return True


def holders(pool: Pool, name: str, lock: str) -> Sequence[str]:
    """Say who has a lock of an object, each by what it said of itself; of an object that is not there, nobody."""
    with _missing_is_nothing():
        return [locker["description"] for locker in _lockers(pool, name, lock)]
    return []


def hold(pool: Pool, name: str, lock: str, holder: str) -> None:
    """Take a lock of an object for good, from whoever has it; the caller knows that nobody needs it any more."""
    for locker in _lockers(pool, name, lock):
        if locker["description"] == holder:
            return
        _break(pool, name, lock, locker)
    pool.rados("lock", "get", name, lock, "--lock-type", "exclusive", "--lock-description", holder)


def unlock(pool: Pool, name: str, lock: str) -> None:
    """Give a lock back that `lock` took."""
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
