"""What a layer changes in its parent, by comparing their trees. Reads only, and nothing outside the two.

The rules are those of moby's `ChangesDirs` (pkg/archive/changes.go, changes_linux.go, changes_unix.go), its order made
the one that `ExportChanges` sorts by. A layer may belong to a running container that renames and removes while we
look: every directory is opened relative to the one above it and never through a symlink, and what is gone by the time
we look at it counts as removed. Uses the working directory of the process (see confined.py): reading an attribute by a
directory's descriptor and a name is not to be had otherwise.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple, Optional

from tarformat import NANOSECONDS

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CAPABILITY = b"security.capability"


class Kind(enum.IntEnum):
    """What happened to a path; the numbers are those of the protocol's Changes answer."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


class Found(NamedTuple):
    """A changed path, absolute within the layer, with its attributes there (lstat); None if it was deleted."""

    path: bytes
    kind: Kind
    now: Optional[os.stat_result]  # noqa: UP045 - evaluated by Python 3.9


def walk(root: int, parent: int | None) -> Iterator[Found]:
    """What changed from `parent` (None: an empty tree) to `root`, sorted by path. Both are open directories.

    The root directories themselves are not compared. A directory in which something changed comes as modified, before
    what changed. Of a removed directory only itself is listed, of an added one all that is in it.
    """
    if parent is None:
        yield from _added(root, b"")
        return
    found: list[Found] = []
    _compare(root, parent, b"", found)
    found.sort(key=lambda item: item.path)
    yield from found


def total_size(found: Iterator[Found]) -> int:
    """The bytes of all that is new or modified, directories left out, hard links once (moby: ChangesSize)."""
    size = 0
    seen = set()
    for item in found:
        now = item.now
        if now is None or stat.S_ISDIR(now.st_mode) or (now.st_nlink > 1 and now.st_ino in seen):
            continue
        seen.add(now.st_ino)
        size += now.st_size
    return size


def _list(directory: int) -> dict[bytes, os.stat_result]:
    """What is in a directory, with its attributes. Makes it the working directory."""
    listing = {}
    os.fchdir(directory)
    with os.scandir(b".") as entries:
        for entry in entries:
            try:
                listing[entry.name] = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since the directory was read
    return listing


def _open(directory: int, name: bytes, opened: contextlib.ExitStack) -> int | None:
    """A directory within one, None if there is none any more."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    opened.callback(os.close, fd)
    return fd


def _added(directory: int, prefix: bytes) -> Iterator[Found]:
    """Everything below a directory, in the order of the whole paths, without holding more than one branch in memory.

    In that order "a-b" comes after "a" but before "a/c", so a directory has two places: its own and its content's.
    """
    listing = _list(directory)
    order = [(name, name) for name in listing]
    order += [(name + b"/", name) for name, now in listing.items() if stat.S_ISDIR(now.st_mode)]
    order.sort()
    for key, name in order:
        if key is name:
            yield Found(prefix + b"/" + name, Kind.ADDED, listing[name])
            continue
        with contextlib.ExitStack() as opened:
            below = _open(directory, name, opened)
            if below is not None:
                yield from _added(below, prefix + b"/" + name)


def _compare(new: int, old: int, prefix: bytes, found: list[Found]) -> None:
    """Append to `found` what changed below a directory that both trees have."""
    now, before = _list(new), _list(old)
    for name, status in now.items():
        was = before.get(name)
        path = prefix + b"/" + name
        same = was is not None and not _differs(status, was) and not _capability_differs(new, old, name, status, was)
        if stat.S_ISDIR(status.st_mode):
            count = len(found)
            _compare_below(new, old if was is not None and stat.S_ISDIR(was.st_mode) else None, name, path, found)
            same = same and len(found) == count
        if not same:
            found.append(Found(path, Kind.ADDED if was is None else Kind.MODIFIED, status))
    found.extend(Found(prefix + b"/" + name, Kind.DELETED, None) for name in before if name not in now)


def _compare_below(new: int, old: int | None, name: bytes, path: bytes, found: list[Found]) -> None:
    """Compare a directory's content with that of its namesake in the parent (`old`), or take it as added."""
    with contextlib.ExitStack() as opened:
        below = _open(new, name, opened)
        if below is None:
            return
        counterpart = _open(old, name, opened) if old is not None else None
        if counterpart is None:
            found.extend(_added(below, path))
        else:
            _compare(below, counterpart, path, found)


def _differs(now: os.stat_result, was: os.stat_result) -> bool:
    """Whether attributes say that something changed; of a directory its size and times say nothing (statDifferent)."""
    if now.st_mode != was.st_mode or now.st_uid != was.st_uid or now.st_gid != was.st_gid or now.st_rdev != was.st_rdev:
        return True
    if stat.S_ISDIR(now.st_mode):
        return False
    return now.st_size != was.st_size or not _same_time(now.st_mtime_ns, was.st_mtime_ns)


def _same_time(one: int, other: int) -> bool:
    """Whether two times are equal, or may be: an archive keeps whole seconds only (sameFsTime)."""
    if one == other:
        return True
    return one // NANOSECONDS == other // NANOSECONDS and (one % NANOSECONDS == 0 or other % NANOSECONDS == 0)


def _capability_differs(new: int, old: int, name: bytes, now: os.stat_result, was: os.stat_result) -> bool:
    """Whether the file capabilities differ. An inode that a clone shares with its parent needs no look.

    Whoever changes an attribute moves the inode's ctime: the same inode number with the same ctime, to the nanosecond,
    is the same inode.
    """
    if now.st_ino == was.st_ino and now.st_ctime_ns == was.st_ctime_ns:
        return False
    return capability(new, name) != capability(old, name)


def capability(directory: int, name: bytes) -> bytes | None:
    """The file capabilities of a name in an open directory, None without. Makes it the working directory."""
    os.fchdir(directory)
    try:
        return os.getxattr(name, CAPABILITY, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT):
            return None
        raise
