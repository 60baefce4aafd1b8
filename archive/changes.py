"""What a layer changes in its parent: two whole trees are compared, or what the layer brought with what is below it.

Nothing is written. The rules are those of moby's `ChangesDirs` (pkg/archive/changes.go, changes_linux.go,
changes_unix.go), and the order is that of `ExportChanges`. A layer may belong to a running container that renames and
removes while we look. So every directory is opened relative to the one above it and never through a symlink, and a name
that has gone by then counts as removed. All of it uses the working directory of the process (see confined.py): an
attribute cannot be read by a directory's descriptor and a name.

What a layer brought is what overlayfs put into its upper directory (Documentation/filesystems/overlayfs.rst). Only the
names there are compared: every other name is the same as below. A whiteout, a character device 0:0, stands for a name
that is gone. A directory that is marked opaque hides its namesake below: it and all directories in it are compared
like whole trees. A whiteout is never a change by itself; no view of overlayfs shows one.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MODIFIED, ADDED, DELETED = 0, 1, 2  # as in the protocol's Changes answer
CAPABILITY = "security.capability"
_OPAQUE = b"trusted.overlay.opaque"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_SECOND = 10**9

# What is at a path now: a regular file that surely has no extended attribute, any regular file, or something else.
PLAIN_FILE, FILE, OTHER = 2, 1, 0

# A change: its path, absolute within the layer; what happened; what is there now.
Found = tuple[bytes, int, int]


def walk(root: int, parent: int | None, *, own: bool = False, look: bool = False) -> Iterator[Found]:
    """Return what changed from `parent` (None: an empty tree) to `root`, sorted by path. Both are open directories.

    `own`: `root` is a layer's upper directory, `parent` a view of what is below the layer; the result is the same as
    for the view of the layer. The root directories themselves are not compared. A directory in which something changed
    is modified itself, and comes before the change. A removed directory is listed without its content, an added one
    with it. `look`: tell plain files from others if there is no parent, which costs a system call for each.
    Raises OSError.
    """
    if parent is None:
        return _added(root, b"", look)
    found: list[Found] = []
    _compare(found, root, parent, b"", whole=not own)
    found.sort()
    return iter(found)


def total_size(root: int, found: Iterable[Found]) -> int:
    """Return the bytes of all that is added or modified, without directories, hard links once (moby: ChangesSize).

    Raises OSError.
    """
    size = 0
    seen = set()
    directory = Directory(root)
    for path, kind, _ in list(found):  # the walk must end first: it uses the working directory too
        above, _, name = path.rpartition(b"/")
        if kind == DELETED or not directory.enter(above):
            continue
        try:
            now = os.lstat(name)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(now.st_mode) and (now.st_nlink == 1 or now.st_ino not in seen):
            seen.add(now.st_ino)
            size += now.st_size
    return size


class Directory:
    """The working directory of the process, as it moves through a tree and never through a symlink."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._path: bytes | None = None

    def enter(self, path: bytes) -> bool:
        """Make a directory of the tree the working directory; False if it does not exist (any more). Raises OSError."""
        if path == self._path:
            return True
        here, self._path = self._path, None
        if here is None or not path.startswith(here + b"/"):  # else on from here: from the top, depth would be squared
            os.fchdir(self._root)
            here = b""
        for name in path[len(here) :].split(b"/")[1:]:
            below = _open(name)
            if below is None:
                return False
            try:
                os.fchdir(below)
            finally:
                os.close(below)
        self._path = path
        return True


def _open(name: bytes, above: int | None = None) -> int | None:
    """Open a directory in another one (None: the working directory); None if it does not exist any more."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=above)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _added(directory: int, prefix: bytes, look: bool) -> Iterator[Found]:
    """Yield all that is below a directory, in the order of the whole paths, with one branch at a time in memory.

    In that order "a-b" comes after "a" but before "a/c". So a directory is in the order twice, for itself and for its
    content. Few inodes are read: the directory tells which names are files and which are directories.
    """
    order = []
    os.fchdir(directory)
    with os.scandir(b".") as entries:
        for entry in entries:
            name = entry.name
            if entry.is_file(follow_symlinks=False):
                order.append((name, PLAIN_FILE if look and _has_no_attributes(name) else FILE))
            elif entry.is_dir(follow_symlinks=False):
                order += [(name, OTHER), (name + b"/", OTHER)]
            elif entry.is_symlink() or not _is_whiteout(entry):
                order.append((name, OTHER))
    order.sort()
    for name, what in order:
        if name[-1] != 0x2F:
            yield prefix + b"/" + name, ADDED, what
            continue
        below = _open(name[:-1], directory)
        if below is not None:
            try:
                yield from _added(below, prefix + b"/" + name[:-1], look)
            finally:
                os.close(below)


def _is_whiteout(entry: os.DirEntry[bytes]) -> bool:
    """Whether an entry stands for a removed name, or has gone itself."""
    try:
        return is_whiteout(entry.stat(follow_symlinks=False))
    except FileNotFoundError:
        return True


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a file of this status is a whiteout of overlayfs."""
    return stat.S_ISCHR(status.st_mode) and not status.st_rdev


def _has_no_attributes(name: bytes) -> bool:
    try:
        return not os.listxattr(name, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (*_GONE, errno.EOPNOTSUPP):
            raise
        return False


def _list(directory: int) -> dict[bytes, os.stat_result]:
    """Return the names in a directory, each with its status. Makes it the working directory."""
    listing = {}
    os.fchdir(directory)
    with os.scandir(b".") as entries:
        for entry in entries:
            try:
                listing[entry.name] = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since the directory was read
    return listing


def _namesakes(directory: int, names: Iterable[bytes]) -> dict[bytes, os.stat_result]:
    """Return those of `names` that a directory has, each with its status."""
    listing = {}
    for name in names:
        try:
            listing[name] = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
    return listing


def _compare(found: list[Found], new: int, old: int, prefix: bytes, *, whole: bool) -> None:
    """Append what changed below a directory that both trees have.

    `whole`: a name that `new` does not have is gone. Else `new` is in an upper directory, and only a whiteout says so.
    """
    now = _list(new)
    before = _list(old) if whole else _namesakes(old, now)
    now = {name: status for name, status in now.items() if not is_whiteout(status)}
    changed, alike = {}, []
    for name, status in now.items():
        was = before.get(name)
        if was is None:
            changed[name] = ADDED
        elif _differs(status, was):
            changed[name] = MODIFIED
        else:
            alike.append(name)
    mine, theirs = _capabilities(new, alike), _capabilities(old, alike)
    changed.update((name, MODIFIED) for name in alike if mine[name] != theirs[name])
    for name, kind in changed.items():
        found.append((prefix + b"/" + name, kind, FILE if stat.S_ISREG(now[name].st_mode) else OTHER))
    found.extend((prefix + b"/" + name, DELETED, OTHER) for name in before if name not in now)
    for name, status in now.items():
        if stat.S_ISDIR(status.st_mode):
            count = len(found)
            _compare_below(found, new, old, prefix + b"/" + name, whole=whole)
            if name not in changed and len(found) > count:
                found.append((prefix + b"/" + name, MODIFIED, OTHER))


def _compare_below(found: list[Found], new: int, old: int, path: bytes, *, whole: bool) -> None:
    """Compare a directory in `new` with its namesake in `old`; if there is none, all that is in it is added."""
    name = path.rpartition(b"/")[2]
    below = _open(name, new)
    if below is None:
        return
    try:
        before = _open(name, old)
        if before is None:
            found.extend(_added(below, path, False))
            return
        try:
            _compare(found, below, before, path, whole=whole or _is_opaque(below))
        finally:
            os.close(before)
    finally:
        os.close(below)


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return False


def _differs(now: os.stat_result, was: os.stat_result) -> bool:
    """Whether two statuses differ. The size and the times of a directory do not count (moby: statDifferent)."""
    mode = now.st_mode
    if mode != was.st_mode or now.st_uid != was.st_uid or now.st_gid != was.st_gid or now.st_rdev != was.st_rdev:
        return True
    if now.st_size == was.st_size and now.st_mtime_ns == was.st_mtime_ns:
        return False
    return not stat.S_ISDIR(mode) and (now.st_size != was.st_size or not _same_time(now.st_mtime_ns, was.st_mtime_ns))


def _same_time(one: int, other: int) -> bool:
    """Whether two times are equal, or may be: an archive has whole seconds only (moby: sameFsTime)."""
    return one == other or (one // _SECOND == other // _SECOND and (one % _SECOND == 0 or other % _SECOND == 0))


def _capabilities(directory: int, names: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return the file capabilities of names in a directory (b"": none). Makes it the working directory."""
    os.fchdir(directory)
    return {name: capability(name) for name in names}


def capability(target: bytes | int) -> bytes:
    """Return the file capabilities of a name in the working directory or of an open file.

    They are b"" if there are none, or the file has gone. Raises OSError.
    """
    try:
        follow = {} if isinstance(target, int) else {"follow_symlinks": False}
        if CAPABILITY in os.listxattr(target, **follow):
            return os.getxattr(target, CAPABILITY, **follow)
    except OSError as error:
        if error.errno not in (*_GONE, errno.ENODATA, errno.EOPNOTSUPP):
            raise
    return b""
