"""Space in a layer's file system for what an archive brings: it grows while the archive is laid down.

Images are thin, so nobody need know beforehand how large a layer will be. An image has the size of its file system, and
grows by little more than it takes. One that is larger would need no resize, but each copy and removal looks at all
objects that there could be: `rbd deep cp` and `rm` of a nearly empty image take 0.13 and 0.2 s at 10 GiB, 0.75 and 0.3
at 100 GiB, 2.3 and 1.2 at 1 TiB. A layer that may grow is not mapped exclusively: krbd then takes a new size at once,
else it refuses `rbd resize` with 30.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from archive import transfer
from host import command, deadline
from images.options import format_size
from mounts import MountError

log = logging.getLogger("space")

# What a byte of an archive takes at the most: an entry of 512 bytes may be a directory of one block of 4 KiB and an
# inode; and an entry of 512 bytes may be an inode. Those that make more of it are not built by any tool for images: a
# path with dozens of directories that have no entry, many hard links to one large file of aufs.
BYTES_PER_BYTE, BYTES_PER_INODE = 9, 512
# What was fed may still be on its way (in pipes, and at bsdtar), and the file system needs some space for itself.
SPARE_BYTES, SPARE_INODES = 64 << 20, 16 << 10
# Each step is one `rbd resize`, 0.1 s, and makes the layer too large by half of it on average.
STEP, STEP_SHARE, MEBIBYTE = 256 << 20, 8, 1 << 20
# An image of which nothing is stored takes the longer to remove the larger it is: 2 TiB 4 s, 20 TiB minutes.
LARGEST = 16 << 40


class Space:
    """The space in the mounted file system of one layer, for one archive."""

    def __init__(self, point: str, size: int, grow: Callable[[int], None], seconds: float) -> None:
        """`grow` lets image and file system, of `size` bytes now, have another size. A look takes up to `seconds`."""
        self._point = point
        self._size = size
        self._grow = grow
        self._seconds = seconds
        # So many bytes of the archive there is space for, whatever is in them.
        self._enough_for = 0
        # Why it does not grow.
        self._failure = ""

    def make(self, size: int) -> None:
        """Make space for the next `size` bytes of the archive, as far as that is possible. Raises deadline.Overdue."""
        self._enough_for -= size
        if self._enough_for >= 0 or self._failure:
            return
        self._enough_for = self._look()
        while self._enough_for < size and not self._failure:
            self._step()
            self._enough_for = self._look()
        self._enough_for -= size

    def explained(self, error: transfer.ArchiveError) -> transfer.ArchiveError:
        """Return an error with what to do, if it may come from a file system that is full."""
        if not self._failure or os.strerror(errno.ENOSPC) not in str(error):
            return error
        return transfer.ArchiveError(
            f"{error}; its file system, {format_size(self._size)}, is full and did not grow: {self._failure}; set a "
            f"larger ceph.basesize"
        )

    def _look(self) -> int:
        status = deadline.call(lambda: os.statvfs(self._point), self._point, self._seconds)
        free = (status.f_bavail * status.f_frsize - SPARE_BYTES) // BYTES_PER_BYTE
        return min(free, (status.f_favail - SPARE_INODES) * BYTES_PER_INODE)

    def _step(self) -> None:
        size = self._size + max(STEP, self._size // STEP_SHARE // MEBIBYTE * MEBIBYTE)
        if size > LARGEST:
            self._failure = f"a layer grows to {format_size(LARGEST)} by itself"
            return
        try:
            self._grow(size)
        except (command.CommandError, MountError) as error:
            log.warning("%s does not grow beyond %s: %s", self._point, format_size(self._size), error)
            self._failure = str(error)
            return
        self._size = size
        log.info("%s has grown to %s", self._point, format_size(size))
