"""Reads the files of a layer before Docker, which reads one after the other, asks for them.

`docker save` and `docker push` get each layer of an image and read what it brought, file by file: each waits for the
cluster once, which for thousands of small files is most of the time that they take. Asked for many at once, the kernel
joins what lies side by side and the cluster answers many at a time.

A process of its own, since nothing else puts an end to a read from a device whose cluster does not answer:

    python3 read_ahead_process.py DIRECTORY OTHERS

DIRECTORY is what a finished layer brought: nobody writes to it. OTHERS: so many may read at the same time. Large files
are left to the kernel's own read-ahead. Prints a dot for each piece of which the reading was begun. Exit status 1
and one line if that cannot be done.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = 1 << 20
PIECE = 16 << 20
# What is read ahead must not drive out what others need: all that read may have this part of the free memory.
MEMORY_SHARE = 4
_MAP_FIXED = 0x10  # mman(2); not in Python's mmap
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Together:
    """Files that are asked for in one call: only then does the kernel join what lies side by side.

    They are mapped one beside the other, since of all calls that read ahead madvise(2) alone takes more than one file
    (mm/madvise.c, blk_start_plug). Half of the reads is left of those that posix_fadvise(2) for each file makes.
    """

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._c.mmap.restype = ctypes.c_void_p
        self._c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._begin = self._map(None, PIECE + LARGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        self._end = self._begin

    def add(self, file: int, size: int) -> bool:
        """Map an open file of LARGE bytes at the most; tell whether that makes a piece. Raises OSError."""
        self._map(self._end, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, file)
        self._end += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        return self._end - self._begin >= PIECE

    def ask(self) -> None:
        """Have what was added read ahead, and forget it. Raises OSError."""
        size = self._end - self._begin
        if size and self._c.madvise(self._begin, size, mmap.MADV_WILLNEED):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        # The next ones are mapped over these.
        self._end = self._begin

    def _map(self, where: int | None, size: int, access: int, flags: int, file: int) -> int:
        found = self._c.mmap(where, size, access, flags, file, 0)
        if found in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(found)


def read_ahead(directory: str, most: int) -> None:
    """Ask for the files below a directory that are not large, up to `most` bytes of them. Raises OSError."""
    together, asked = _Together(), 0
    for path in _files(directory):
        file = os.open(path, _OPEN)
        try:
            size = os.fstat(file).st_size
            if not 0 < size <= LARGE:
                continue
            asked += size
            if asked > most:
                break
            if together.add(file, size):
                together.ask()
                os.write(1, b".")
        finally:
            os.close(file)
    together.ask()


def _files(directory: str) -> Iterator[str]:
    """Yield the regular files below a directory, about as they stand in an archive: sorted, one branch at a time."""
    branches = [directory]
    while branches:
        with os.scandir(branches.pop()) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_file(follow_symlinks=False):
                yield entry.path
        branches += [entry.path for entry in reversed(found) if entry.is_dir(follow_symlinks=False)]


def _available() -> int:
    """Return the bytes of memory that can be had without swapping (proc(5), meminfo)."""
    with open("/proc/meminfo", encoding="ascii") as source:
        return next(int(line.split()[1]) << 10 for line in source if line.startswith("MemAvailable:"))


def main() -> int:
    """Read the command line."""
    try:
        read_ahead(sys.argv[1], _available() // MEMORY_SHARE // int(sys.argv[2]))
    except OSError as error:
        print(f"{error.filename or sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
