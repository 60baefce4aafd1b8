"""Make the archive of what changed in a layer: the working half of Diff. `walk` finds, `pack` reads and writes.

Two processes share the work, because one Python is slower than `tar -c` and two are not: the walker stats and compares,
the packer opens files and writes them. Both run confined (see confined.py). The rules are those of moby's
`ExportChanges` and `addTarFile` (pkg/archive): names relative and sorted, a whiteout for what was removed, hard links
by inode with the target first, no sockets, whole seconds, security.capability as the only attribute. What differs, on
purpose: whiteouts carry no time, so that a diff made twice is the same; a file that shrinks while it is read is filled
up with zeros, where moby's archive breaks.
"""

from __future__ import annotations

import errno
import marshal
import os
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from changes import CAPABILITY, Found, Kind
from idmaps import IdError, IdMaps
from tarformat import (
    BLOCK,
    BLOCKDEV,
    CHARDEV,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    TRAILER,
    ArchiveError,
    Entry,
    quote,
)
from tarheader import header

_BATCH = 128
_SMALL = 1 << 16  # a file up to this size is read in one piece
_FLUSH = 1 << 18
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a fifo put in its place must not block us
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_TYPES = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHARDEV,
    stat.S_IFBLK: BLOCKDEV,
    stat.S_IFIFO: FIFO,
}


class Item(NamedTuple):
    """What the walker tells the packer of a path; mode 0 if it was deleted."""

    path: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    rdev: int
    links: int
    inode: int


def send(found: Iterable[Found], fd: int) -> None:
    """Write what was found to the packer, and an end mark after all of it."""
    with open(fd, "wb") as out:
        batch: list[tuple[bytes | int, ...]] = []
        for path, kind, now in found:
            if kind == Kind.DELETED or now is None:
                batch.append((path, 0, 0, 0, 0, 0, 0, 0, 0))
            else:
                batch.append(
                    (
                        path,
                        now.st_mode,
                        now.st_uid,
                        now.st_gid,
                        now.st_size,
                        now.st_mtime_ns,
                        now.st_rdev,
                        now.st_nlink,
                        now.st_ino,
                    )
                )
            if len(batch) == _BATCH:
                marshal.dump(batch, out)
                batch = []
        marshal.dump(batch, out)
        marshal.dump(None, out)


def _receive(source: BinaryIO) -> Iterator[Item]:
    while True:
        try:
            batch = marshal.load(source)  # noqa: S302 - made by our own walker
        except EOFError as error:
            raise ArchiveError("the comparison of the layers broke off") from error
        if batch is None:
            return
        yield from map(Item._make, batch)


def pack(source: int, out: int, ids: IdMaps) -> None:
    """Write the archive of what the walker sends. Needs the layer as "/".

    Raises ArchiveError with the name of the entry; what is written by then is no complete archive.
    """
    packer = _Packer(out, ids)
    with open(source, "rb") as items:
        for item in _receive(items):
            try:
                packer.add(item)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise ArchiveError(f"{quote(item.path)}: {os.strerror(error.errno or 0)}") from error
            except (IdError, OverflowError) as error:
                raise ArchiveError(f"{quote(item.path)}: {error}") from error
    packer.close()


class _Packer:
    def __init__(self, out: int, ids: IdMaps) -> None:
        self._out = out
        self._ids = ids
        self._mapped = bool(ids.uids or ids.gids)
        self._parts: list[bytes] = []  # of the archive, not yet written
        self._waiting = 0  # their bytes
        self._first: dict[int, bytes] = {}  # the first name of each inode that has several
        self._directory: bytes | None = None  # the working directory, None if it could not be entered

    def add(self, item: Item) -> None:
        """Add what the walker found, or nothing if it is a socket or has gone."""
        directory, _, name = item.path.rpartition(b"/")
        if item.mode == 0:
            self._put(header(Entry(item.path[1 : -len(name)] + b".wh." + name, mode=0)))
            return
        kind = _TYPES.get(stat.S_IFMT(item.mode))
        if kind is None or not self._enter(directory):
            return
        try:
            self._add_existing(name, item, kind)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def close(self) -> None:
        """Write what is left and the end of the archive."""
        self._put(TRAILER)
        self._flush()

    def _add_existing(self, name: bytes, item: Item, kind: bytes) -> None:
        entry = Entry(item.path[1:], kind, mode=item.mode & 0o7777)
        entry.mtime = item.mtime
        entry.uid, entry.gid = self._owner(item, kind)
        if kind == DIRECTORY:
            entry.name += b"/"
        elif kind == SYMLINK:
            entry.link = os.readlink(name)
        elif kind in (CHARDEV, BLOCKDEV):
            entry.devmajor, entry.devminor = os.major(item.rdev), os.minor(item.rdev)
        _add_capability(name, entry)
        if item.links > 1 and kind != DIRECTORY:
            first = self._first.setdefault(item.inode, entry.name)
            if first is not entry.name:
                entry.type, entry.link = LINK, first
                self._put(header(entry))
                return
        if kind == FILE:
            try:
                self._add_file(name, item, entry)
            except OSError:
                self._first.pop(item.inode, None)
                raise
        else:
            self._put(header(entry))

    def _owner(self, item: Item, kind: bytes) -> tuple[int, int]:
        if not self._mapped or (kind == CHARDEV and item.rdev == 0):  # moby: an overlay whiteout is the kernel's own
            return item.uid, item.gid
        return self._ids.to_container(item.uid, item.gid)

    def _add_file(self, name: bytes, item: Item, entry: Entry) -> None:
        fd = os.open(name, _OPEN_FILE)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):  # another thing has taken its name
                return
            entry.size = size = item.size
            self._put(header(entry))
            if size > _SMALL:
                self._send_file(fd, size)
            elif size:
                data = os.read(fd, size)
                self._put(data.ljust(size + -size % BLOCK, b"\0") if len(data) != size or size % BLOCK else data)
        finally:
            os.close(fd)

    def _send_file(self, fd: int, size: int) -> None:
        """Send `size` bytes of a file, whatever its size is by now, straight from the page cache."""
        self._flush()
        left = size
        while left:
            sent = os.sendfile(self._out, fd, None, min(left, 1 << 20))
            if not sent:
                break
            left -= sent
        zeros = bytes(1 << 16)
        left += -size % BLOCK
        while left:
            self._put(zeros[:left])
            left -= min(left, len(zeros))

    def _enter(self, directory: bytes) -> bool:
        """Make a directory the working directory, never through a symlink. False if it has gone."""
        if directory == self._directory:
            return True
        self._directory = None
        os.chdir(b"/")
        for name in directory.split(b"/")[1:]:
            try:
                fd = os.open(name, _OPEN_DIRECTORY)
            except OSError as error:
                if error.errno in _GONE:
                    return False
                raise
            try:
                os.fchdir(fd)
            finally:
                os.close(fd)
        self._directory = directory
        return True

    def _put(self, part: bytes) -> None:
        self._parts.append(part)
        self._waiting += len(part)
        if self._waiting >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        data = memoryview(b"".join(self._parts))
        self._parts.clear()
        self._waiting = 0
        while data:
            data = data[os.write(self._out, data) :]


def _add_capability(name: bytes, entry: Entry) -> None:
    """Take the file capabilities into the archive, as revision 2: the user id of revision 3 means nothing elsewhere."""
    if "security.capability" not in os.listxattr(name, follow_symlinks=False):
        return
    value = os.getxattr(name, CAPABILITY, follow_symlinks=False)
    if len(value) > 20 and value[3] == 3:
        value = value[:3] + b"\2" + value[4:20]
    entry.xattrs[CAPABILITY] = value
