"""The inodes of an XFS, by their numbers: thousands in one system call, no directory is looked at.

fs/xfs/libxfs/xfs_fs.h has the structures, xfsctl(3) says what the calls do (XFS_IOC_FSBULKSTAT, XFS_IOC_FSINUMBERS).
They are those of the first version, which every kernel has. The caller must be root. Each directory that is asked for
is an open one; OSError is ENOTTY where it is no XFS, EPERM for who is not root.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

# _IOWR('X', 101 and 103, struct xfs_fsop_bulkreq)
_BULKSTAT, _NUMBERS = 0xC0205865, 0xC0205867
_REQUEST = struct.Struct("QixxxxQQ")  # xfs_fsop_bulkreq: lastip, icount, ubuffer, ocount
# xfs_bstat: inode, mode, links, user, group, device number, 8 bytes, size, access time, mtime and ctime in seconds and
# nanoseconds, 24 bytes, generation, 24 bytes
_BSTAT = struct.Struct("QHHIII8xq16xqi4xqi24xI24x")
_GROUP = struct.Struct("QixxxxQ")  # xfs_inogrp: number of the first inode, how many are in use, which ones
_AT_ONCE = 1024
CHUNK = 64
# What it means that there is no telling.
_UNKNOWN = (errno.ENOTTY, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP)

# Inode, mode, links, user, group, device number, size, mtime and ctime (two numbers each), generation.
Inode = tuple[int, int, int, int, int, int, int, int, int, int, int, int]


def every(directory: int) -> Iterator[Inode]:
    """Yield the inodes of a directory's file system, in the order of their numbers. Raises OSError."""
    for some in _ask(directory, _BULKSTAT, _BSTAT, 0, _AT_ONCE):
        yield from some


def sixty_four(number: int) -> int:
    """Return the lowest of the 64 numbers that an inode's is one of; chunks may begin elsewhere."""
    return number // CHUNK * CHUNK


def within(directory: int, chunks: Iterable[int]) -> Iterator[Inode]:
    """Yield the inodes of some chunks, each given by its first number. Raises OSError."""
    for first in chunks:
        some = next(_ask(directory, _BULKSTAT, _BSTAT, first - 1, CHUNK), ())
        yield from (inode for inode in some if inode[0] < first + CHUNK)


def chunks(directory: int) -> dict[int, int] | None:
    """Return where a directory's file system has its inodes: for the first number of each chunk, which are in use.

    Bit n is for the n-th of its 64. None where this cannot be told: no XFS. Raises OSError.
    """
    try:
        return {first: used for some in _ask(directory, _NUMBERS, _GROUP, 0, _AT_ONCE) for first, _, used in some}
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return None


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
        if error.errno not in _UNKNOWN:
            raise
        return None
    return differing


def _ask(directory: int, call: int, entry: struct.Struct, last: int, most: int) -> Iterator[Iterator[tuple[Any, ...]]]:
    """Yield what a call tells of the inodes beyond the number `last`, up to `most` entries at a time."""
    position, found = array.array("Q", [last]), array.array("i", [0])
    entries = array.array("B", bytes(most * entry.size))
    addresses = [item.buffer_info()[0] for item in (position, entries, found)]
    while True:
        fcntl.ioctl(directory, call, _REQUEST.pack(addresses[0], most, *addresses[1:]))
        if not found[0]:
            return
        yield entry.iter_unpack(memoryview(entries)[: found[0] * entry.size])
