"""Make the archive of what changed in a layer: the working half of Diff.

Two processes share the work, because one Python is slower than `tar -c` and two are not: `send` makes headers of what a
walk finds, `pack` opens the files and writes it all. Both run confined (see confined.py). The rules are those of moby's
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
from typing import BinaryIO

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
_ZEROS = bytes(1 << 16)
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a fifo put in its place must not block us
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)  # ENXIO: a socket or a device took its place
_TYPES = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHARDEV,
    stat.S_IFBLK: BLOCKDEV,
    stat.S_IFIFO: FIFO,
}

# What `send` tells `pack` of a path: the path, its header, the size of the file whose content follows (-1: none), and
# for a further name of an inode the header that makes it a link, with the path of the first name.
Item = tuple[bytes, bytes, int, bytes, bytes]


def send(found: Iterable[Found], fd: int, ids: IdMaps) -> None:
    """Write items to the packer for all that a walk (with details) found, and an end mark.

    Raises ArchiveError with the name of the entry; then there is no end mark.
    """
    first: dict[int, bytes] = {}  # the first name of each inode that has several
    with open(fd, "wb") as out:
        batch: list[Item] = []
        for item in found:
            try:
                batch.extend(_items(item, first, ids))
            except (IdError, OverflowError) as error:
                raise ArchiveError(f"{quote(item.path)}: {error}") from error
            if len(batch) >= _BATCH:
                marshal.dump(batch, out)
                batch = []
        marshal.dump(batch, out)
        marshal.dump(None, out)


def _items(found: Found, first: dict[int, bytes], ids: IdMaps) -> Iterator[Item]:
    """The item of a path, or none for a socket: an archive cannot hold it."""
    path, kind, now, _, _ = found
    if kind == Kind.DELETED or now is None:
        directory, _, name = path.rpartition(b"/")
        yield (
            path,
            header(Entry(directory[1:] + b"/.wh." + name if directory else b".wh." + name, mode=0)),
            -1,
            b"",
            b"",
        )
        return
    entry = _entry(found, now, ids)
    if entry is None:
        return
    size = entry.size if entry.type == FILE else -1
    if now.st_nlink > 1 and entry.type != DIRECTORY:
        target = first.setdefault(now.st_ino, path)
        if target is not path:
            as_file = header(entry)
            entry.type, entry.link, entry.size = LINK, target[1:], 0
            yield path, as_file, size, header(entry), target
            return
    yield path, header(entry), size, b"", b""


def _entry(found: Found, now: os.stat_result, ids: IdMaps) -> Entry | None:
    kind = _TYPES.get(stat.S_IFMT(now.st_mode))
    if kind is None:
        return None
    entry = Entry(found.path[1:], kind, mode=now.st_mode & 0o7777)
    entry.mtime = now.st_mtime_ns
    entry.uid, entry.gid = now.st_uid, now.st_gid
    if (ids.uids or ids.gids) and not (kind == CHARDEV and now.st_rdev == 0):  # moby: an overlay whiteout is the host's
        entry.uid, entry.gid = ids.to_container(now.st_uid, now.st_gid)
    if kind == FILE:
        entry.size = now.st_size
    elif kind == DIRECTORY:
        entry.name += b"/"
    elif kind == SYMLINK:
        entry.link = found.link
    elif kind in (CHARDEV, BLOCKDEV):
        entry.devmajor, entry.devminor = os.major(now.st_rdev), os.minor(now.st_rdev)
    if found.capability:
        entry.xattrs = {CAPABILITY.encode(): _revision_2(found.capability)}
    return entry


def _revision_2(capability: bytes) -> bytes:
    """File capabilities without the user id that revision 3 added: it means nothing elsewhere (moby: the same)."""
    return capability[:3] + b"\2" + capability[4:20] if capability[3:4] == b"\3" else capability


def _receive(source: BinaryIO) -> Iterator[list[Item]]:
    while True:
        try:
            batch = marshal.load(source)  # noqa: S302 - made by `send`
        except (EOFError, ValueError) as error:
            raise ArchiveError("the comparison of the layers broke off") from error
        if batch is None:
            return
        yield batch


def pack(source: int, out: int) -> None:
    """Write the archive of the items that come in. Needs the layer as "/".

    Raises ArchiveError with the name of the entry; what is written by then is no complete archive.
    """
    packer = _Packer(out)
    with open(source, "rb") as items:
        for batch in _receive(items):
            for item in batch:
                try:
                    packer.add(item)
                except BrokenPipeError:
                    raise
                except OSError as error:
                    raise ArchiveError(f"{quote(item[0])}: {os.strerror(error.errno or 0)}") from error
    packer.close()


class _Packer:
    def __init__(self, out: int) -> None:
        self._out = out
        self._parts: list[bytes] = []  # of the archive, not yet written
        self._waiting = 0  # their bytes
        self._lost: set[bytes] = set()  # files that had gone when we came to open them
        self._directory = b""  # the working directory

    def add(self, item: Item) -> None:
        """Add an entry, or nothing if its file has gone."""
        path, head, size, link, target = item
        if link and target not in self._lost:
            self._put(link)
        elif size < 0:
            self._put(head)
        else:
            fd = self._open(path)
            if fd is None:
                self._lost.add(path)
                return
            try:
                self._put(head)
                self._put_content(fd, size)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Write what is left and the end of the archive."""
        self._put(TRAILER)
        self._flush()

    def _open(self, path: bytes) -> int | None:
        """A regular file, None if it has gone or another thing has taken its name."""
        directory, _, name = path.rpartition(b"/")
        try:
            if directory != self._directory:
                self._enter(directory)
            fd = os.open(name, _OPEN_FILE)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None

    def _enter(self, directory: bytes) -> None:
        """Make a directory the working directory, never through a symlink."""
        self._directory = b""
        os.chdir(b"/")
        for name in directory.split(b"/")[1:]:
            fd = os.open(name, _OPEN_DIRECTORY)
            try:
                os.fchdir(fd)
            finally:
                os.close(fd)
        self._directory = directory

    def _put_content(self, fd: int, size: int) -> None:
        """`size` bytes of a file, cut off or filled up with zeros if it has another size by now, and the padding."""
        if size <= _SMALL:
            data = os.read(fd, size)
            self._put(data)
            missing = size - len(data)
        else:
            missing = self._send_file(fd, size)
        missing += -size % BLOCK
        while missing:
            self._put(_ZEROS[:missing])
            missing -= min(missing, len(_ZEROS))

    def _send_file(self, fd: int, size: int) -> int:
        """Send a file straight from the page cache; return how many bytes it lacked."""
        self._flush()
        left = size
        while left:
            sent = os.sendfile(self._out, fd, None, min(left, 1 << 20))
            if not sent:
                break
            left -= sent
        return left

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
