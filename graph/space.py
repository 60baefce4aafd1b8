"""Space in a layer's file system for what an archive brings: the file system grows while the archive is laid down.

Images are thin, so nobody need know beforehand how large a layer will be. An image has the size of its file system, and
grows by little more than the archive needs. A larger image would need no resize, but each copy and removal looks at all
objects that there could be: `rbd deep cp` and `rm` of a nearly empty image take 0.13 and 0.2 s at 10 GiB, 0.75 and 0.3
at 100 GiB, 2.3 and 1.2 at 1 TiB. A layer that may grow is not mapped exclusively: then krbd takes a new size at once.
Under an exclusive mapping `rbd resize` ends with 30.
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

# A byte of an archive takes up to 9 bytes in the file system: an entry of 512 bytes may be a directory, which takes a
# block of 4 KiB and an inode. One inode may need only 512 bytes of an archive. Some archives take more, but no tool for
# images makes them: a path with dozens of directories that have no entry, many hard links to one large file of aufs.
BYTES_PER_BYTE, BYTES_PER_INODE = 9, 512
# Content that was fed may not be in the file system yet (it is in pipes, or at bsdtar), and the file system needs some
# space for itself.
SPARE_BYTES, SPARE_INODES = 64 << 20, 16 << 10
# Each step is one `rbd resize`, which takes 0.1 s. On average half a step is more than the layer needs.
STEP, STEP_SHARE, MEBIBYTE = 256 << 20, 8, 1 << 20
# The larger an empty image is, the longer its removal takes: 4 s for 2 TiB, minutes for 20 TiB.
LARGEST = 16 << 40


class Space:
    """The space in a layer's mounted file system, for one archive. It decides when the layer grows, and by how much."""

    def __init__(self, point: str, size: int, grow: Callable[[int], None], seconds: float) -> None:
        """Image and file system have `size` bytes now; `grow` gives them another size. A look takes up to `seconds`."""
        self._point = point
        self._size = size
        self._grow = grow
        self._seconds = seconds
        # There is space for so many bytes of the archive, whatever is in them.
        self._enough_for = 0
        # Why it does not grow any more, "" if it may.
        self._failure = ""

    def make(self, size: int) -> None:
        """Make space for the next `size` bytes of the archive, as far as that is possible.

        If the layer cannot grow, this is logged, and the archive goes on. Raises deadline.Overdue, OSError.
        """
        self._enough_for -= size
        if self._enough_for >= 0 or self._failure:
            return
        self._enough_for = self._look()
        while self._enough_for < size and not self._failure:
            self._step()
            self._enough_for = self._look()
        self._enough_for -= size

    def explained(self, error: transfer.ArchiveError) -> transfer.ArchiveError:
        """Return the error, with what to do added if the file system is full and did not grow."""
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
