"""Reads the files of a layer before Docker asks for them. Docker reads one after the other.

`docker save` and `docker push` get each layer of an image and read what it brought, file by file. Each file waits for
the cluster once; for thousands of small files these waits take most of the time. This program asks for many files at
once: then the kernel joins reads that lie side by side, and the cluster answers many at a time.

It is a process of its own, since a read from a device whose cluster does not answer can only be ended by a kill:

    python3 read_ahead_process.py DIRECTORY OTHERS

DIRECTORY is what a finished layer brought: nobody writes to it. OTHERS is the number of such processes that may run at
the same time. Large files are left to the kernel's own read-ahead. The process prints a dot for each piece that it has
asked for. It ends with status 1 and one line if it cannot read.
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
# Reading ahead must not drive out of memory what others need. All these processes together may fill one part in so many
# of the free memory.
MEMORY_SHARE = 4
_MAP_FIXED = 0x10  # mman(2); not in Python's mmap
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Together:
    """Files that are asked for in one call: only then does the kernel join reads that lie side by side.

    Of all calls that read ahead, only madvise(2) takes more than one file (mm/madvise.c, blk_start_plug). For that the
    files are mapped one beside the other. It makes half as many reads as posix_fadvise(2) for each file.
    """

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._c.mmap.restype = ctypes.c_void_p
        self._c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._begin = self._map(None, PIECE + LARGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        self._end = self._begin

    def add(self, file: int, size: int) -> bool:
        """Map an open file of LARGE bytes at the most. Tell whether PIECE bytes are mapped now. Raises OSError."""
        self._map(self._end, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, file)
        self._end += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        return self._end - self._begin >= PIECE

    def ask(self) -> None:
        """Ask the kernel to read the added files ahead, and forget them. Raises OSError."""
        size = self._end - self._begin
        if size and self._c.madvise(self._begin, size, mmap.MADV_WILLNEED):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        # The next files are mapped over these.
        self._end = self._begin

    def _map(self, where: int | None, size: int, access: int, flags: int, file: int) -> int:
        found = self._c.mmap(where, size, access, flags, file, 0)
        if found in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(found)


def read_ahead(directory: str, most: int) -> None:
    """Ask for the files below a directory that are not large, until `most` bytes are asked for. Raises OSError."""
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
    """Yield the regular files below a directory, roughly in the order of an archive: sorted, one branch at a time."""
    branches = [directory]
    while branches:
        with os.scandir(branches.pop()) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_file(follow_symlinks=False):
                yield entry.path
        branches += [entry.path for entry in reversed(found) if entry.is_dir(follow_symlinks=False)]


def _available() -> int:
    """Return how many bytes of memory are available without swapping (proc(5), meminfo)."""
    with open("/proc/meminfo", encoding="ascii") as source:
        return next(int(line.split()[1]) << 10 for line in source if line.startswith("MemAvailable:"))


def main() -> int:
    """Read the command line, and read ahead. Return the exit status."""
    try:
        read_ahead(sys.argv[1], _available() // MEMORY_SHARE // int(sys.argv[2]))
    except OSError as error:
        print(f"{error.filename or sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
