"""Reads the files that a layer brought, before the one asks for them who reads them one after the other.

`docker save` and `docker push` get each layer of an image and read its files in turn: each waits for the cluster once,
which for thousands of small files is most of the time that they take. Asked for many at once, the kernel joins what
lies side by side and the cluster answers many at a time.

A process of its own, since nothing else puts an end to a read from a device whose cluster does not answer:

    python3 readahead.py DIRECTORY BEGAN [CHUNK...]

DIRECTORY is the root of a layer's mounted XFS; its own files are those that changed since its archive was begun, at
BEGAN (nanoseconds since 1970, by that file system's times). Large ones are left to the kernel's own read-ahead. They
are found without looking at any directory, by the numbers of their inodes (inodes.py; xfsctl(3),
XFS_IOC_OPEN_BY_HANDLE): those of the CHUNKs, or all, which are read from the cluster for it. Prints how many bytes were
asked for. Exit status 1 and one line if that cannot be done.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import stat
import struct
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import inodes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LARGE = 1 << 20
# What is read ahead must not drive out what others need.
MEMORY_SHARE = 4
_MAP_FIXED = 0x10  # mman(2); not in Python's mmap
# fs/xfs/libxfs/xfs_fs.h: _IOWR('X', 104 and 107, struct xfs_fsop_handlereq).
_PATH_TO_FSHANDLE, _OPEN_BY_HANDLE = 0xC0385868, 0xC038586B
# fd, path, oflags, ihandle, its size, ohandle, its size
_HANDLE_REQUEST = struct.Struct("I4xQI4xQI4xQQ")
_HANDLE = struct.Struct("8sHHIQ")  # xfs_handle: file system, 14 bytes follow, padding, generation, inode


def read_ahead(directory: str, began: int, chunks: Sequence[int], most: int) -> int:
    """Ask for a layer's own files, up to `most` bytes of them, and return how many. Raises OSError (ENOTTY: no XFS)."""
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    file_system = _file_system(top, directory)
    together, asked = _Together(), 0
    for inode, generation, size in _files(top, began, chunks):
        if asked + size > most:
            break
        try:
            file = _open(top, _HANDLE.pack(file_system, _HANDLE.size - 10, 0, generation, inode))
        except FileNotFoundError:
            continue
        together.add(file, size)
        os.close(file)
        asked += size
    together.ask()
    return asked


class _Together:
    """Files that are asked for in one call: only then does the kernel join what lies side by side.

    They are mapped one beside the other, since of all calls that read ahead madvise(2) alone takes more than one file
    (mm/madvise.c, blk_start_plug). A third of the reads is left of those that posix_fadvise(2) for each file makes.
    """

    SIZE = 16 << 20

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._c.mmap.restype = ctypes.c_void_p
        self._c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._begin = self._map(None, self.SIZE + LARGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        self._end = self._begin

    def add(self, file: int, size: int) -> None:
        """Map an open file, of LARGE bytes at the most, behind the others. Raises OSError."""
        self._map(self._end, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, file)
        self._end += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._end - self._begin >= self.SIZE:
            self.ask()

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


def _files(top: int, began: int, chunks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield inode, generation and size of the regular files that changed since then and are not large."""
    found = inodes.within(top, chunks) if chunks else inodes.every(top)
    for inode, mode, _, _, _, _, size, _, _, seconds, nanoseconds, generation in found:
        if stat.S_ISREG(mode) and 0 < size <= LARGE and seconds * 10**9 + nanoseconds >= began:
            yield inode, generation, size


def _file_system(top: int, directory: str) -> bytes:
    """Return what each handle of a file in this file system begins with."""
    path, handle = array.array("B", os.fsencode(directory) + b"\0"), array.array("B", bytes(_HANDLE.size))
    size = array.array("I", [0])
    addresses = [item.buffer_info()[0] for item in (path, handle, size)]
    fcntl.ioctl(top, _PATH_TO_FSHANDLE, _HANDLE_REQUEST.pack(0, addresses[0], 0, 0, 0, *addresses[1:]))
    return handle[: size[0]].tobytes()


def _open(top: int, handle: bytes) -> int:
    """Open a file by its handle. Raises OSError: FileNotFoundError if it is gone."""
    buffer = array.array("B", handle)
    request = _HANDLE_REQUEST.pack(0, 0, os.O_RDONLY, buffer.buffer_info()[0], len(buffer), 0, 0)
    return int(fcntl.ioctl(top, _OPEN_BY_HANDLE, bytearray(request)))


def _available() -> int:
    """Return the bytes of memory that can be had without swapping (proc(5), meminfo)."""
    with open("/proc/meminfo", encoding="ascii") as source:
        return next(int(line.split()[1]) << 10 for line in source if line.startswith("MemAvailable:"))


def main() -> int:
    """Read the command line."""
    try:
        began, *chunks = map(int, sys.argv[2:])
        print(read_ahead(sys.argv[1], began, chunks, _available() // MEMORY_SHARE))
    except (OSError, ValueError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
