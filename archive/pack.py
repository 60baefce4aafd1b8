"""Makes the archive of what changed in a layer, for Diff.

`pack` looks at each path that a walk finds, and writes it to the archive. A walk may run at the same time in a process
of its own: that one `send`s what it finds. All of it runs confined (see confined.py). The rules are those of moby's
`ExportChanges` and `addTarFile` (pkg/archive): names relative and sorted, a whiteout for each removed name, hard links
by inode with the target first, no sockets, whole seconds, security.capability as the only attribute. What differs, on
purpose: whiteouts carry no time, so that two diffs are the same; a file that shrinks while it is read is filled up with
zeros, where moby's archive breaks.
"""

from __future__ import annotations

import errno
import marshal
import os
import stat

from archive.changes import CAPABILITY, DELETED, OTHER, PLAIN_FILE, Directory, Found, capability, is_whiteout
from archive.id_maps import IdError, Ranges, to_container
from archive.tar_format import (
    BLOCK,
    BLOCKDEV,
    CHARDEV,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    NANOSECONDS,
    SYMLINK,
    TRAILER,
    ArchiveError,
    Entry,
    quote,
)
from archive.tar_header import header, plain_header
from archive.tar_reader import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BATCH = 128
_SMALL = 1 << 16  # a file up to this size is read in one piece
_BUFFER = 1 << 18
_ZEROS = bytes(1 << 16)
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a fifo may have its name by now: do not wait
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)  # ENXIO: a socket or a device took its place
_TYPES = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHARDEV,
    stat.S_IFBLK: BLOCKDEV,
    stat.S_IFIFO: FIFO,
}


def send(found: Iterable[Found], fd: int) -> None:
    """Write what a walk finds to the packer, and an end mark after it: a missing mark means that the walk broke off.

    Raises OSError; BrokenPipeError if the packer has ended.
    """
    with open(fd, "wb") as out:
        batch = []
        for item in found:
            batch.append(item)
            if len(batch) == _BATCH:
                marshal.dump(batch, out)
                batch = []
        marshal.dump(batch, out)
        marshal.dump(None, out)


def receive(fd: int) -> Iterator[Found]:
    """Yield what `send` sends. Raises ArchiveError if the walk breaks off."""
    with open(fd, "rb") as items:
        while True:
            try:
                batch = marshal.load(items)  # noqa: S302 - made by `send`
            except (EOFError, ValueError) as error:
                raise ArchiveError("the comparison of the layers broke off") from error
            if batch is None:
                return
            yield from batch


def pack(found: Iterable[Found], out: int, root: int, uids: Ranges, gids: Ranges) -> None:
    """Write the archive of the changes `found` in the tree `root`, an open directory.

    A walk in this process must have ended: both use the working directory. Raises ArchiveError with the name of the
    entry, BrokenPipeError if nobody reads; what was written by then is no complete archive.
    """
    packer = _Packer(out, root, uids, gids)
    for item in found:
        try:
            packer.add(item)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ArchiveError(f"{quote(item[0])}: {os.strerror(error.errno or 0)}") from error
        except (IdError, OverflowError) as error:
            raise ArchiveError(f"{quote(item[0])}: {error}") from error
    packer.close()


class _Packer:
    def __init__(self, out: int, root: int, uids: Ranges, gids: Ranges) -> None:
        self._out = out
        self._uids, self._gids = uids, gids
        self._buffer = memoryview(bytearray(_BUFFER))  # the part of the archive that is not yet written
        self._waiting = 0  # bytes of that
        self._first: dict[int, bytes] = {}  # the first name in the archive of each inode that has several names
        self._directory = Directory(root)

    def add(self, item: Found) -> None:
        """Add the entry of a change, or nothing if the name is a socket or has gone."""
        path, kind, what = item
        directory, _, name = path.rpartition(b"/")
        if kind == DELETED:
            self._put(header(Entry((directory + b"/.wh." + name)[1:], mode=0)))
            return
        if not self._directory.enter(directory):
            return
        try:
            if what == OTHER:
                self._add_other(path[1:], name)
            else:
                self._add_file(path[1:], name, plain=what == PLAIN_FILE)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def close(self) -> None:
        """Write the rest of the archive and its end."""
        self._put(TRAILER)
        self._flush()

    def _add_file(self, path: bytes, name: bytes, *, plain: bool) -> None:
        fd = os.open(name, _OPEN_FILE)
        try:
            now = os.fstat(fd)
            if not stat.S_ISREG(now.st_mode):  # another thing has taken its name
                return
            links, size = now.st_nlink, now.st_size
            head = None
            if plain and links == 1 and not self._uids and not self._gids:
                owner = now.st_mode & 0o7777, now.st_uid, now.st_gid
                head = plain_header(path, owner, size, now.st_mtime_ns // NANOSECONDS)
            if head is None:
                entry = self._entry(path, now, FILE)
                entry.xattrs = _capability_of(fd)
                if links > 1 and self._first.setdefault(now.st_ino, path) is not path:
                    self._put_link(entry, now.st_ino)
                    return
                head = header(entry)
            self._put(head)
            self._put_content(fd, size)
        finally:
            os.close(fd)

    def _add_other(self, path: bytes, name: bytes) -> None:
        now = os.lstat(name)
        kind = _TYPES.get(stat.S_IFMT(now.st_mode))
        if kind in (None, FILE) or is_whiteout(now):  # a socket; or the name was replaced, and counts as gone
            return
        entry = self._entry(path, now, kind or FILE)
        entry.xattrs = _capability_of(name)
        if kind == DIRECTORY:
            entry.name += b"/"
        elif kind == SYMLINK:
            entry.link = os.readlink(name)
        elif kind in (CHARDEV, BLOCKDEV):
            entry.devmajor, entry.devminor = os.major(now.st_rdev), os.minor(now.st_rdev)
        if now.st_nlink > 1 and kind != DIRECTORY and self._first.setdefault(now.st_ino, path) is not path:
            self._put_link(entry, now.st_ino)
        else:
            self._put(header(entry))

    def _entry(self, path: bytes, now: os.stat_result, kind: bytes) -> Entry:
        entry = Entry(path, kind, mode=stat.S_IMODE(now.st_mode), size=now.st_size if kind == FILE else 0)
        entry.mtime = now.st_mtime_ns
        entry.uid = to_container(self._uids, now.st_uid, "user")
        entry.gid = to_container(self._gids, now.st_gid, "group")
        return entry

    def _put_link(self, entry: Entry, inode: int) -> None:
        entry.type, entry.link, entry.size = LINK, self._first[inode], 0
        self._put(header(entry))

    def _put_content(self, fd: int, size: int) -> None:
        """Add `size` bytes of a file, cut off or filled up with zeros if its size has changed, and the padding."""
        if size <= _SMALL:
            if self._waiting + size > _BUFFER:
                self._flush()
            got = os.readv(fd, [self._buffer[self._waiting : self._waiting + size]])
            self._waiting += got
            missing = size - got
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
        """Add a part that is smaller than the buffer: the name in a header has PATH_MAX bytes at most."""
        if self._waiting + len(part) > _BUFFER:
            self._flush()
        end = self._waiting + len(part)
        self._buffer[self._waiting : end] = part
        self._waiting = end

    def _flush(self) -> None:
        write_all(self._out, self._buffer[: self._waiting])
        self._waiting = 0


def _capability_of(target: bytes | int) -> dict[bytes, bytes]:
    """Return the file capabilities as an archive has them: without the user id of revision 3, which is the host's."""
    value = capability(target)
    if value[3:4] == b"\3":
        value = value[:3] + b"\2" + value[4:20]
    return {CAPABILITY.encode(): value} if value else {}
