"""Hands plain files over from untar.py to a bsdtar that lays them down beside it, on another core. Runs confined.

bsdtar.py is at the other end: it starts a bsdtar when we ask for one, and tells how it ended. The headers that bsdtar
reads are made here, from what untar.py has parsed, checked and resolved; of the archive itself nothing but the content
of the files goes through. The headers are GNU's: they have a time of access and need no names of users and groups. They
also take a name as it is, without a pax header, for whose character set libarchive would load a converter out of the
layer (CVE-2019-14271). A stream begins with GNU's header of a long name, in which a layer chooses nothing but two
numbers: libarchive guesses the format from the first bytes, and might take a name for the mark of a compression or of
another format.
"""

from __future__ import annotations

import _socket  # the C part of `socket`, whose other modules would double the time that this program takes to start
import fcntl
import os
import sys
import zlib

from archive.tar_format import BLOCK, FILE, NANOSECONDS, TRAILER, ArchiveError, Entry
from archive.tar_reader import write_all

LARGEST = 1 << 16  # bytes of a file; a larger one is faster from pipe to file than through one more process
_MOST_PENDING = 1 << 16  # files: their paths are in memory
_PIECE = 1 << 17
_SIZE_OF_PIPE = 1 << 20  # some 400 small files
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ from Python 3.10 on
_LIMIT_8, _LIMIT_12 = 8**7, 8**11  # what fields of 8 and 12 bytes hold in octal, with a NUL at their end
_NAME = 100
_MAGIC = b"ustar  \0"
_LATEST = _LIMIT_12 * NANOSECONDS


class _Times(dict[int, "tuple[bytes, bytes, int]"]):
    """A cache by time: the field of the time, what stands behind the checksum of a header, its share of the checksum.

    Most times repeat.
    """

    def __missing__(self, seconds: int) -> tuple[bytes, bytes, int]:
        if len(self) == 4096:
            self.clear()
        field = b"%011o\0" % seconds
        back = (FILE + bytes(100) + _MAGIC + bytes(80) + field).ljust(356, b"\0")
        self[seconds] = value = field, back, sum(back) + 8 * 0x20 - 1
        return value


_TIMES = _Times()


def _file_header(path: bytes, mode: int, owner: tuple[int, int], size: int, seconds: int) -> bytes:
    """Return the header of a file; its time of access is that of modification. The path is cut to 100 bytes."""
    field, back, share = _TIMES[seconds]
    front = b"%s%07o\0%07o\0%07o\0%011o\0%s" % (path[:_NAME].ljust(_NAME, b"\0"), mode, *owner, size, field)
    # Adler-32 gives the sum, as in tar_header.py: 100 bytes of any value and 48 digits stay below 65521.
    return b"%s%06o\0 %s" % (front, (zlib.adler32(front) & 0xFFFF) + share, back)


def _long_name(path: bytes) -> bytes:
    """Return what goes before the header of a file with a long path: a header for the path, and the path itself."""
    front = b"././@LongLink".ljust(_NAME, b"\0") + b"0000000\0" * 3 + b"%011o\0%011o\0" % (len(path) + 1, 0)
    back = (b"L" + bytes(100) + _MAGIC).ljust(356, b"\0")
    header = b"%s%06o\0 %s" % (front, sum(front) + sum(back) + 8 * 0x20, back)
    return header + path + bytes(BLOCK - len(path) % BLOCK)


class Handover:
    """The handover of files to bsdtar. `pending`: paths of files that may not be there yet; `flush` waits for them."""

    def __init__(self, control: int, patience: int) -> None:
        """`control` is a socket to bsdtar.py. After `patience` files a bsdtar is worth its start."""
        self.pending: set[bytes] = set()
        self._control = _socket.socket(fileno=control)
        self._patience = self._waiting = patience
        self._data = -1  # the pipe
        self._buffer = memoryview(bytearray(2 * _PIECE))
        self._used = 0

    def takes(self, entry: Entry, owner: tuple[int, int]) -> bool:
        """Whether a new file without attributes can be handed over. It can if its header is simple and there are many.

        Each call counts as a file.
        """
        if self._waiting:
            self._waiting -= 1
            return False
        uid, gid = owner
        return (
            entry.size <= LARGEST
            and entry.atime is None
            and 0 < entry.mtime < _LATEST
            and not entry.mtime % NANOSECONDS
            and 0 <= uid < _LIMIT_8
            and 0 <= gid < _LIMIT_8
        )

    def add(self, path: bytes, entry: Entry, owner: tuple[int, int], data: memoryview) -> None:
        """Hand over a file. Its path leads through no symlink, and is free. Raises ArchiveError as `flush` does."""
        header = _file_header(path, entry.mode & 0o7777, owner, entry.size, entry.mtime // NANOSECONDS)
        if not self.pending:
            self._start()
        if len(path) > _NAME or not self.pending:
            header = _long_name(path) + header
        start = self._used + len(header)
        end = start + len(data)
        padded = end + -len(data) % BLOCK
        self._buffer[self._used : start] = header
        self._buffer[start:end] = data
        self._buffer[end:padded] = bytes(padded - end)
        self._used = padded
        self.pending.add(path)
        if padded >= _PIECE:
            self._send()
        if len(self.pending) == _MOST_PENDING:
            self.flush()

    def flush(self) -> None:
        """Wait until no file is pending. Raises ArchiveError, with the words of bsdtar, if it failed."""
        if self.pending:
            self._buffer[self._used : self._used + len(TRAILER)] = TRAILER
            self._used += len(TRAILER)
            self._send()
            os.close(self._data)
            self._end()
            self.pending.clear()
            self._waiting = self._patience

    def _start(self) -> None:
        source, self._data = os.pipe()
        try:  # noqa: SIM105 # contextlib takes longer to load than all modules of ours
            fcntl.fcntl(self._data, _F_SETPIPE_SZ, _SIZE_OF_PIPE)
        except OSError:
            pass  # the host forbids it: the two processes take turns more often
        right = source.to_bytes(4, sys.byteorder)
        self._control.sendmsg([b"+"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, right)])
        os.close(source)

    def _send(self) -> None:
        try:
            write_all(self._data, self._buffer[: self._used])
        except BrokenPipeError:
            self._end()
            raise ArchiveError("bsdtar ended before the archive did") from None
        self._used = 0

    def _end(self) -> None:
        """Receive how bsdtar ended. Raises ArchiveError if it failed."""
        answer = self._control.recv(1 << 16)
        if answer != b"+":
            raise ArchiveError(answer.decode("ascii", "backslashreplace") or "nobody tells how bsdtar ended")
