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
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Optional

from tarformat import NANOSECONDS

CAPABILITY = "security.capability"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Kind(enum.IntEnum):
    """What happened to a path; the numbers are those of the protocol's Changes answer."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


class Found(NamedTuple):
    """A changed path, absolute within the layer, and what is there now: nothing if it was deleted."""

    path: bytes
    kind: Kind
    now: Optional[os.stat_result] = None  # noqa: UP045 - evaluated by Python 3.9
    capability: bytes = b""  # file capabilities, and
    link: bytes = b""  # where a symlink leads: only if the walk was asked for details


class Walk:
    """A comparison of two trees, or of one with nothing. `details` are what an archive needs beyond lstat."""

    def __init__(self, root: int, parent: int | None, *, details: bool) -> None:
        self._root = root
        self._parent = parent
        self._details = details

    def __iter__(self) -> Iterator[Found]:
        """What changed, sorted by path.

        The root directories themselves are not compared. A directory in which something changed comes as modified,
        before what changed. Of a removed directory only itself is listed, of an added one all that is in it.
        """
        if self._parent is None:
            return self._added(self._root, b"")
        found: list[Found] = []
        self._compare(self._root, self._parent, b"", found)
        found.sort(key=lambda item: item.path)
        return iter(found)

    def _added(self, directory: int, prefix: bytes) -> Iterator[Found]:
        """All that is below a directory, in the order of the whole paths, one branch at a time in memory.

        In that order "a-b" comes after "a" but before "a/c": a directory has two places, its own and its content's.
        """
        items = self._details_of(directory, prefix, _list(directory), Kind.ADDED)
        order = [(name, name) for name in items]
        order += [(name + b"/", name) for name, item in items.items() if _is_directory(item.now)]
        order.sort()
        for key, name in order:
            if key is name:
                yield items[name]
                continue
            with contextlib.ExitStack() as opened:
                below = _open(directory, name, opened)
                if below is not None:
                    yield from self._added(below, items[name].path)

    def _compare(self, new: int, old: int, prefix: bytes, found: list[Found]) -> None:
        """Append to `found` what changed below a directory that both trees have."""
        before, now = _list(old), _list(new)
        modified = {name for name, status in now.items() if name in before and _differs(status, before[name])}
        doubtful = [name for name in now if name in before and not _is_same_inode(now[name], before[name])]
        if doubtful:
            mine, theirs = _capabilities(new, doubtful), _capabilities(old, doubtful)
            modified.update(name for name in doubtful if mine[name] != theirs[name])
        changed = self._details_of(new, prefix, {name: now[name] for name in modified}, Kind.MODIFIED)
        added = {name: status for name, status in now.items() if name not in before}
        changed.update(self._details_of(new, prefix, added, Kind.ADDED))
        found.extend(changed.values())
        found.extend(Found(prefix + b"/" + name, Kind.DELETED) for name in before if name not in now)
        for name, status in now.items():
            if _is_directory(status):
                count = len(found)
                self._compare_below(new, old if _is_directory(before.get(name)) else None, name, prefix, found)
                if name not in changed and len(found) > count:
                    found.append(Found(prefix + b"/" + name, Kind.MODIFIED, status))

    def _compare_below(self, new: int, old: int | None, name: bytes, prefix: bytes, found: list[Found]) -> None:
        """Compare a directory's content with that of its namesake in the parent (`old`), or take it as added."""
        with contextlib.ExitStack() as opened:
            below = _open(new, name, opened)
            if below is None:
                return
            counterpart = _open(old, name, opened) if old is not None else None
            if counterpart is None:
                found.extend(self._added(below, prefix + b"/" + name))
            else:
                self._compare(below, counterpart, prefix + b"/" + name, found)

    def _details_of(
        self, directory: int, prefix: bytes, listing: dict[bytes, os.stat_result], kind: Kind
    ) -> dict[bytes, Found]:
        if not self._details or not listing:
            return {name: Found(prefix + b"/" + name, kind, status) for name, status in listing.items()}
        capabilities = _capabilities(directory, listing)
        found = {}
        for name, status in listing.items():
            link = b""
            if stat.S_ISLNK(status.st_mode):
                try:
                    link = os.readlink(name)
                except OSError as error:
                    if error.errno in (*_GONE, errno.EINVAL):  # EINVAL: no symlink any more
                        continue
                    raise
            found[name] = Found(prefix + b"/" + name, kind, status, capabilities[name], link)
        return found


def total_size(found: Iterable[Found]) -> int:
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


def _capabilities(directory: int, names: Iterable[bytes]) -> dict[bytes, bytes]:
    """The file capabilities of names in a directory, b"" without. Makes it the working directory."""
    os.fchdir(directory)
    found = {}
    for name in names:
        found[name] = b""
        try:
            if CAPABILITY in os.listxattr(name, follow_symlinks=False):
                found[name] = os.getxattr(name, CAPABILITY, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (*_GONE, errno.ENODATA, errno.EOPNOTSUPP):
                raise
    return found


def _open(directory: int, name: bytes, opened: contextlib.ExitStack) -> int | None:
    """A directory within one, None if there is none any more."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    opened.callback(os.close, fd)
    return fd


def _is_directory(status: os.stat_result | None) -> bool:
    return status is not None and stat.S_ISDIR(status.st_mode)


def _is_same_inode(now: os.stat_result, was: os.stat_result) -> bool:
    """Whether a clone shares this inode with its parent, unchanged.

    Whoever changes an attribute moves the inode's ctime: the same number with the same ctime, to the nanosecond.
    """
    return now.st_ctime_ns == was.st_ctime_ns and now.st_ino == was.st_ino


def _differs(now: os.stat_result, was: os.stat_result) -> bool:
    """Whether attributes say that something changed; of a directory its size and times say nothing (statDifferent)."""
    if (now.st_mode, now.st_uid, now.st_gid, now.st_rdev) != (was.st_mode, was.st_uid, was.st_gid, was.st_rdev):
        return True
    if stat.S_ISDIR(now.st_mode):
        return False
    return now.st_size != was.st_size or not _same_time(now.st_mtime_ns, was.st_mtime_ns)


def _same_time(one: int, other: int) -> bool:
    """Whether two times are equal, or may be: an archive keeps whole seconds only (sameFsTime)."""
    if one == other:
        return True
    return one // NANOSECONDS == other // NANOSECONDS and (one % NANOSECONDS == 0 or other % NANOSECONDS == 0)
