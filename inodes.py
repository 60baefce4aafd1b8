"""The inodes of an XFS, by their numbers: thousands in one system call, no directory is looked at.

fs/xfs/libxfs/xfs_fs.h has the structures, xfsctl(3) says what the calls do (XFS_IOC_FSBULKSTAT). They are those of the
first version, which every kernel has. The caller must be root.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_BULKSTAT = 0xC0205865  # _IOWR('X', 101, struct xfs_fsop_bulkreq)
_REQUEST = struct.Struct("QixxxxQQ")  # xfs_fsop_bulkreq: lastip, icount, ubuffer, ocount
# xfs_bstat: inode, mode, links, user, group, device number, 8 bytes, size, access time, mtime and ctime in seconds and
# nanoseconds, 24 bytes, generation, 24 bytes
_BSTAT = struct.Struct("QHHIII8xq16xqi4xqi24xI24x")
_AT_ONCE = 1024

# Inode, mode, links, user, group, device number, size, mtime and ctime (two numbers each), generation.
Inode = tuple[int, int, int, int, int, int, int, int, int, int, int, int]


def every(directory: int) -> Iterator[Inode]:
    """Yield the inodes of a directory's file system, in the order of their numbers.

    `directory` is open. Raises OSError: ENOTTY where it is no XFS, EPERM for who is not root.
    """
    last, found = array.array("Q", [0]), array.array("i", [0])
    entries = array.array("B", bytes(_AT_ONCE * _BSTAT.size))
    addresses = [item.buffer_info()[0] for item in (last, entries, found)]
    while True:
        fcntl.ioctl(directory, _BULKSTAT, _REQUEST.pack(addresses[0], _AT_ONCE, *addresses[1:]))
        if not found[0]:
            return
        yield from _BSTAT.iter_unpack(memoryview(entries)[: found[0] * _BSTAT.size])


def changed(directory: int, before: int) -> set[int] | None:
    """The inodes of one file system that are not in another, of which it was cloned, as they are now.

    Both are open directories. Whatever changes an inode moves its ctime; a name that comes or goes changes its
    directory. None where this cannot be told: no XFS, or not two of them.
    """
    if os.fstat(directory).st_dev == os.fstat(before).st_dev:
        return None
    differing = set()
    try:
        old = every(before)
        was = next(old, None)
        for now in every(directory):
            number = now[0]
            while was is not None and was[0] < number:
                was = next(old, None)
            if now != was:
                differing.add(number)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return None
    return differing
