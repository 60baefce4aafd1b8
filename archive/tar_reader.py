"""Reads a tar entry by entry from a file descriptor. Touches no file system.

Reading follows Go's archive/tar (`reader.go`, `strconv.go`), because moby reads layers with it: v7, ustar, star, GNU
and pax headers, GNU long names, the four sparse formats, base-256 numbers, and the broken GNU prefix that Go before 1.8
wrote and old registries still hold. tar_parse.py parses the bytes of headers; this module makes entries of them. One
difference: this takes old GNU sparse files, which moby refuses.
"""

from __future__ import annotations

import errno
import os

from archive.tar_format import (
    BLOCK,
    DIRECTORY,
    FILE,
    HEADER_ONLY,
    MAX_SPECIAL,
    PAX,
    PAX_GLOBAL,
    ZEROS,
    ArchiveError,
    Entry,
    quote,
)
from archive.tar_parse import merge_pax, parse_decimal, parse_header, parse_number, parse_pax, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_splice = getattr(os, "splice", None)  # from Python 3.10 on
_OLD_FILE, _GNU_SPARSE, _GNU_LONG_NAME, _GNU_LONG_LINK = b"\0", b"S", b"L", b"K"


def write_all(fd: int, data: memoryview | bytes) -> None:
    """Write all of `data`, in as many steps as it takes. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Input:
    """The archive, as it comes from a file descriptor, in one buffer that is never copied as a whole.

    Its methods raise OSError if the archive cannot be read, or a target not be written.
    """

    def __init__(self, fd: int, capacity: int = 1 << 20) -> None:
        self._fd = fd
        self._view = memoryview(bytearray(capacity))
        self._pos = self._end = 0

    def _fill(self) -> bool:
        """Append to the buffer what comes next. False at the end of the archive."""
        rest = bytes(self._view[self._pos : self._end])
        self._view[: len(rest)] = rest
        self._pos, self._end = 0, len(rest)
        got = os.readv(self._fd, [self._view[self._end :]])
        self._end += got
        return got > 0

    def take(self, count: int) -> memoryview:
        """Return the next `count` bytes, fewer if the archive ends; they are valid until the next call.

        `count` is at most the capacity of the buffer.
        """
        while self._end - self._pos < count and self._fill():
            pass
        start = self._pos
        self._pos = end = min(start + count, self._end)
        return self._view[start:end]

    def pieces(self, count: int) -> Iterator[memoryview]:
        """Yield the next `count` bytes in pieces, fewer if the archive ends; each is valid until the next call."""
        while count:
            if self._pos == self._end and not self._fill():
                return
            piece = self._view[self._pos : min(self._end, self._pos + count)]
            self._pos += len(piece)
            count -= len(piece)
            yield piece

    def copy_to(self, target: int, count: int) -> int:
        """Write the next `count` bytes to an open file; return how many these were, fewer if the archive ends."""
        left = count
        for piece in self.pieces(min(count, self._end - self._pos)):
            write_all(target, piece)
            left -= len(piece)
        left -= self._splice(target, left)
        for piece in self.pieces(left):
            write_all(target, piece)
            left -= len(piece)
        return count - left

    def _splice(self, target: int, count: int) -> int:
        """Let the kernel move bytes that are not in the buffer from pipe to file; return how many it moved."""
        moved = 0
        try:
            while moved < count and _splice is not None:
                step = _splice(self._fd, target, min(count - moved, 1 << 20))
                if not step:
                    break
                moved += step
        except OSError as error:
            if error.errno != errno.EINVAL:  # the archive does not come from a pipe
                raise
        return moved

    def drain(self) -> None:
        """Read the rest of the input and drop it."""
        self._pos = self._end = 0
        while os.readv(self._fd, [self._view]):
            pass


class TarReader:
    """The entries of an archive, one after the other: `next_entry`, then its data, then the next."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self._name = b""
        self._left = 0  # bytes of the current entry that nobody has read
        self._padding = 0
        self._plain: dict[bytes, int] = {}  # see parse_header

    def next_entry(self) -> Entry | None:
        """Return the next entry, None at the end. The unread data of the entry before is skipped.

        Raises ArchiveError if the archive is malformed or ends within an entry, OSError. An archive may end without its
        two blocks of zeros, and with one of them only (Go: readHeader).
        """
        if self._left:
            for _ in self.data():
                pass
        if self._padding:
            self._source.take(self._padding)  # it is no error if this is missing (Go: skipUnread)
            self._padding = 0
        try:
            return self._next()
        except ValueError as error:
            raise ArchiveError(f"invalid tar header after {quote(self._name)}: {error}") from error

    def whole(self, most: int = 1 << 16) -> memoryview | None:
        """Return all stored bytes of the current entry, valid until the next call; None if they are more than `most`.

        Raises ArchiveError if the archive ends within them.
        """
        size = self._left
        if size > most:
            return None
        view = self._source.take(size + self._padding)
        self._left = max(0, size - len(view))
        self._padding = 0
        if self._left:
            self._complete()
        return view[:size]

    def data(self) -> Iterator[memoryview]:
        """Yield the stored bytes of the current entry in pieces. Each is valid until the next is asked for.

        Raises ArchiveError if the archive ends within them.
        """
        for piece in self._source.pieces(self._left):
            self._left -= len(piece)
            yield piece
        self._complete()

    def copy_to(self, target: int) -> None:
        """Write the stored bytes of the current entry to an open file. Raises ArchiveError as `data` does."""
        self._left -= self._source.copy_to(target, self._left)
        self._complete()

    def _complete(self) -> None:
        if self._left:
            raise ArchiveError(f"{quote(self._name)}: the archive ends within this entry")

    def _block(self) -> bytes:
        block = bytes(self._source.take(BLOCK))
        if 0 < len(block) < BLOCK:
            raise ArchiveError(f"the archive ends within the header after {quote(self._name)}")
        return block

    def _special(self, size: int) -> bytes:
        """Return the data of a long name or pax header. Raises ValueError if it is too long."""
        if size > MAX_SPECIAL:
            raise ValueError(f"an extension header of {size} bytes, {MAX_SPECIAL} are the most")
        self._left = size
        data = b"".join(bytes(piece) for piece in self.data())
        self._source.take(-size % BLOCK)
        return data

    def _next(self) -> Entry | None:
        pax: list[tuple[bytes, bytes]] = []
        long_name = long_link = b""
        while True:
            block = self._block()
            if not block or (block[0] == 0 and block == ZEROS):
                self._end(block)
                return None
            entry = parse_header(block, self._plain)
            if entry.type == PAX:
                pax = parse_pax(self._special(entry.size))
            elif entry.type == PAX_GLOBAL:  # moby ignores these
                parse_pax(self._special(entry.size))
                pax, long_name, long_link = [], b"", b""
            elif entry.type == _GNU_LONG_NAME:
                long_name = text_of(self._special(entry.size))
            elif entry.type == _GNU_LONG_LINK:
                long_link = text_of(self._special(entry.size))
            else:
                if pax:
                    merge_pax(entry, pax)
                if long_name:
                    entry.name = long_name
                if long_link:
                    entry.link = long_link
                self._name = entry.name
                if entry.type == FILE and not pax:
                    self._left = entry.size
                    self._padding = -entry.size % BLOCK
                else:
                    self._settle(entry, block, pax)
                return entry

    def _end(self, block: bytes) -> None:
        """Raise ValueError unless nothing, or a second block of zeros, follows a block of zeros."""
        if block and self._block() not in (b"", ZEROS):
            raise ValueError("a block of zeros before it")

    def _settle(self, entry: Entry, block: bytes, pax: list[tuple[bytes, bytes]]) -> None:
        """Decide the type of an entry, and how much data follows its header."""
        if entry.type == _OLD_FILE:  # in archives older than ustar the name tells that it is a directory
            entry.type = DIRECTORY if entry.name.endswith(b"/") else FILE
        self._left = 0 if entry.type in HEADER_ONLY else entry.size
        self._padding = -self._left % BLOCK
        if entry.type == _GNU_SPARSE:
            entry.type = FILE
            entry.size, entry.sparse = parse_number(block[483:495]), self._old_sparse_map(block)
        elif entry.type == FILE and pax:
            self._pax_sparse(entry, pax)
        if entry.sparse is not None:
            _check_sparse(entry, self._left)

    def _old_sparse_map(self, block: bytes) -> list[tuple[int, int]]:
        """Return the map of an old GNU sparse file: four segments in its header, 21 in each block that follows it."""
        sparse: list[tuple[int, int]] = []
        area, more = block[386:482], block[482]
        while True:
            for pos in range(0, len(area) - 23, 24):
                if area[pos] == 0:  # an empty field ends the map
                    break
                sparse.append((parse_number(area[pos : pos + 12]), parse_number(area[pos + 12 : pos + 24])))
            if not more:
                return sparse
            if len(sparse) * 24 > MAX_SPECIAL:
                raise ValueError("a sparse map too long")
            block = self._block()
            if not block:
                raise ArchiveError(f"{quote(self._name)}: the archive ends within its sparse map")
            area, more = block[:504], block[504]

    def _pax_sparse(self, entry: Entry, pax: list[tuple[bytes, bytes]]) -> None:
        """Apply the GNU.sparse records (Go: readGNUSparsePAXHeaders): formats 0.0, 0.1 and 1.0."""
        records = {key[11:]: value for key, value in pax if key.startswith(b"GNU.sparse.")}
        if not records:
            return
        version = records.get(b"major"), records.get(b"minor")
        if version == (b"1", b"0"):
            entry.sparse = self._sparse_map_in_data(entry)
        elif version in ((None, None), (b"0", b"0"), (b"0", b"1")) and (b"map" in records or b"numblocks" in records):
            flat = [parse_decimal(text) for text in records.get(b"map", b"").split(b",") if text]
            flat += [
                parse_decimal(value) for key, value in pax if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            ]
            entry.sparse = list(zip(flat[::2], flat[1::2]))
            if len(flat) % 2 or len(entry.sparse) != parse_decimal(
                records.get(b"numblocks", b"%d" % len(entry.sparse))
            ):
                raise ValueError("malformed sparse map")
        else:
            return
        entry.name = self._name = records.get(b"name") or entry.name
        entry.size = parse_decimal(records.get(b"realsize") or records.get(b"size") or b"%d" % entry.size)

    def _sparse_map_in_data(self, entry: Entry) -> list[tuple[int, int]]:
        """Return the map of format 1.0: decimal lines at the start of the data, up to a full block."""
        text = b""
        wanted = 1
        while text.count(b"\n") < wanted:
            if self._left < BLOCK or len(text) > MAX_SPECIAL:
                raise ValueError("malformed sparse map")
            block = self._block()
            self._left -= len(block)
            text += block
            if wanted == 1 and b"\n" in text:
                wanted = 1 + 2 * parse_decimal(text.partition(b"\n")[0])
        flat = [parse_decimal(line) for line in text.split(b"\n")[1:wanted]]
        return list(zip(flat[::2], flat[1::2]))


def _check_sparse(entry: Entry, stored: int) -> None:
    """Raise ValueError unless the map of a sparse file is in order, within the file, and as long as the data."""
    end = 0
    for offset, length in entry.sparse or ():
        if offset < end or length < 0:
            raise ValueError("sparse map out of order")
        end = offset + length
    if end > entry.size or sum(length for _, length in entry.sparse or ()) != stored:
        raise ValueError("sparse map does not fit the file")
